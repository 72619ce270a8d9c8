"""Progress on stderr: a bar per stage on a terminal, plain lines otherwise."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from kin_cli.signals import interruptible

if TYPE_CHECKING:
    from kin_cli.progress import Advance

_LINE_EVERY_SECONDS = 30.0
_LINE_EVERY_SECONDS_IN_BATCH = 60.0


class ConsoleProgress:
    """Progress of one slide: a bar for each stage on a terminal; otherwise a line now and then and one at its end."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Show one stage of ``total`` units, or nothing if ``total`` is 0."""
        if total == 0:
            yield lambda _count, _detail="": None
        elif sys.stderr.isatty():
            yield from _bar(name, total, unit, leave=True)
        else:
            yield from _lines(name, total, unit, every_seconds=_LINE_EVERY_SECONDS, summary=True)

    def note(self, message: str) -> None:
        """Print one line, above the bars if there are any."""
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(f"kin: {message}", file=sys.stderr)
        else:
            click.echo(f"kin: {message}", err=True)


class BatchProgress(ConsoleProgress):
    """Progress of a batch: on a terminal a bar over the slides and one for the present stage; otherwise fewer lines."""

    def __init__(self) -> None:
        self._depth = 0

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Show one stage; only the bar of the outermost stage, that of the slides, stays on the screen."""
        self._depth += 1
        try:
            if sys.stderr.isatty():
                yield from _bar(name, total, unit, leave=self._depth == 1)
            else:
                # each slide gets a note, so that the stage of slides needs no lines
                every = math.inf if unit == "slides" else _LINE_EVERY_SECONDS_IN_BATCH
                yield from _lines(name, total, unit, every_seconds=every, summary=False)
        finally:
            self._depth -= 1


def _bar(name: str, total: int, unit: str, *, leave: bool) -> Iterator[Advance]:
    from tqdm import tqdm

    look = {"desc": f"{name:>10}", "unit": f" {unit}", "leave": leave, "dynamic_ncols": True}
    with tqdm(total=total, file=sys.stderr, **look) as bar:

        def advance(count: int, detail: str = "", /) -> None:
            if detail:
                bar.set_postfix_str(detail, refresh=False)
            bar.update(count)

        yield interruptible(advance)


def _lines(name: str, total: int, unit: str, *, every_seconds: float, summary: bool) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int, detail: str = "", /) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last > every_seconds:
            last = time.monotonic()
            rate = done / (last - start)
            left = f", {(total - done) / rate:.0f} s left" if rate else ""
            detail = f"; {detail}" if detail else ""
            click.echo(f"kin: {name} {done}/{total} {unit}, {rate:.1f} {unit}/s{left}{detail}", err=True)

    yield interruptible(advance)
    if summary:
        click.echo(f"kin: {name} {done}/{total} {unit} in {time.monotonic() - start:.1f} s", err=True)
