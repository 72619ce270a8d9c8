"""Progress for people: a bar per stage on a terminal, plain lines otherwise; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

_LINE_EVERY_SECONDS = 30.0


class ConsoleReporter:
    """Draws stages with tqdm where stderr is a terminal, and logs them line by line where it is not."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show one stage of ``total`` tiles; nothing where there is nothing to do."""
        if total == 0:
            yield lambda _: None
        elif sys.stderr.isatty():
            from tqdm import tqdm

            with tqdm(total=total, desc=f"{name:>10}", unit="tile", file=sys.stderr, dynamic_ncols=True) as bar:
                yield bar.update
        else:
            yield from _logged(name, total)

    def note(self, message: str) -> None:
        """Print one line."""
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(f"kin: {message}", file=sys.stderr)
        else:
            click.echo(f"kin: {message}", err=True)


def _logged(name: str, total: int) -> Iterator[Callable[[int], None]]:
    start = last = time.monotonic()
    done = 0

    def advance(tiles: int) -> None:
        nonlocal done, last
        done += tiles
        if time.monotonic() - last > _LINE_EVERY_SECONDS:
            last = time.monotonic()
            rate = done / (last - start)
            left = f", {(total - done) / rate:.0f} s left" if rate else ""
            click.echo(f"kin: {name} {done}/{total} tiles, {rate:.1f} tiles/s{left}", err=True)

    yield advance
    click.echo(f"kin: {name} {done}/{total} tiles in {time.monotonic() - start:.1f} s", err=True)
