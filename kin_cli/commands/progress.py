"""Progress for people: a bar per stage on a terminal, plain lines otherwise; always on stderr."""

from __future__ import annotations

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


class ConsoleProgress:
    """Draws stages with tqdm where stderr is a terminal, and logs them line by line where it is not."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "tiles") -> Iterator[Advance]:
        """Show one stage of ``total`` units; nothing where there is nothing to do."""
        if total == 0:
            yield lambda _count, _detail="": None
        elif sys.stderr.isatty():
            from tqdm import tqdm

            with tqdm(total=total, desc=f"{name:>10}", unit=f" {unit}", file=sys.stderr, dynamic_ncols=True) as bar:

                def advance(count: int, detail: str = "", /) -> None:
                    if detail:
                        bar.set_postfix_str(detail, refresh=False)
                    bar.update(count)

                yield interruptible(advance)
        else:
            yield from _logged(name, total, unit)

    def note(self, message: str) -> None:
        """Print one line."""
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(f"kin: {message}", file=sys.stderr)
        else:
            click.echo(f"kin: {message}", err=True)


def _logged(name: str, total: int, unit: str) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int, detail: str = "", /) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last > _LINE_EVERY_SECONDS:
            last = time.monotonic()
            rate = done / (last - start)
            left = f", {(total - done) / rate:.0f} s left" if rate else ""
            detail = f"; {detail}" if detail else ""
            click.echo(f"kin: {name} {done}/{total} {unit}, {rate:.1f} {unit}/s{left}{detail}", err=True)

    yield interruptible(advance)
    click.echo(f"kin: {name} {done}/{total} {unit} in {time.monotonic() - start:.1f} s", err=True)
