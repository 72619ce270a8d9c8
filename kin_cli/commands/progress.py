"""Progress on stderr: a bar per stage on a terminal, plain lines otherwise."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click
import cloup

from kin_cli.signals import interruptible

if TYPE_CHECKING:
    from kin_cli.progress import Advance

_EVERY_SECONDS = {"quiet": math.inf, "normal": 30.0, "verbose": 5.0}
_EVERY_SECONDS_IN_BATCH = 60.0
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}, {rate_fmt}{postfix}]"
_VERBOSITY = "kin_cli.verbosity"  # key of a click context's ``meta``
_CLOCK_FROM_SECONDS = 2.0  # the first units load libraries and fill caches


class ConsoleProgress:
    """Progress of one slide: a bar for each stage on a terminal; otherwise a line now and then and one at its end."""

    def __init__(self) -> None:
        self._ahead = _Ahead()

    def outlook(self, work: Mapping[str, tuple[int, float]]) -> None:
        """Remember the stages ahead, to tell the time left over all of them."""
        self._ahead = _Ahead(work)

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Show one stage of ``total`` units, or nothing if ``total`` is 0."""
        with self._shown(name, total, unit, every_seconds=_EVERY_SECONDS[verbosity()], last=True) as advance:
            yield advance

    @contextmanager
    def _shown(self, name: str, total: int, unit: str, *, every_seconds: float, last: bool) -> Iterator[Advance]:
        self._ahead.begin(name, total)
        if total == 0:
            yield lambda _count, _detail="": None
        elif verbosity() == "quiet":
            yield interruptible(lambda _count, _detail="": None)
        elif sys.stderr.isatty():
            yield from _bar(name, total, unit, self._ahead, leave=last)
        else:
            yield from _lines(name, total, unit, self._ahead, every_seconds=every_seconds, summary=last)
        self._ahead.end(name)

    def note(self, message: str) -> None:
        """Print one line, above the bars if there are any."""
        if verbosity() == "quiet":
            return
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(f"kin: {message}", file=sys.stderr)
        else:
            click.echo(f"kin: {message}", err=True)


class BatchProgress(ConsoleProgress):
    """Progress of a batch: on a terminal a bar over the slides and one for the present stage; otherwise fewer lines."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Show one stage; only the bar of the outermost stage, that of the slides, stays on the screen."""
        self._depth += 1
        # each slide gets a note, so that the stage of slides needs no lines
        every = math.inf if unit == "slides" else max(_EVERY_SECONDS_IN_BATCH, _EVERY_SECONDS[verbosity()])
        last = self._depth == 1 and sys.stderr.isatty()
        try:
            with self._shown(name, total, unit, every_seconds=every, last=last) as advance:
                yield advance
        finally:
            self._depth -= 1


class _Ahead:
    """The work of the stages that are not finished, and how fast the finished work went."""

    def __init__(self, work: Mapping[str, tuple[int, float]] | None = None) -> None:
        self._costs = {name: cost for name, (_, cost) in (work or {}).items()}
        self._left = {name: count * cost for name, (count, cost) in (work or {}).items()}
        self._done, self._since = 0.0, time.monotonic()

    def begin(self, name: str, total: int) -> None:
        """Take the number of units that a stage really has: an earlier run may have done a part of it."""
        if name in self._costs:
            self._left[name] = total * self._costs[name]

    def advance(self, name: str, count: int) -> None:
        """Count units as finished."""
        work = count * self._costs.get(name, 0.0)
        self._left[name] = max(0.0, self._left.get(name, 0.0) - work)
        if not self._done:
            self._since = min(self._since, time.monotonic())
        self._done += work

    def end(self, name: str) -> None:
        """Nothing is left of a stage."""
        self._left.pop(name, None)

    def seconds_left(self, name: str) -> float | None:
        """Seconds over all stages, at the speed so far; None if ``name`` is not among the stages foreseen."""
        spent = time.monotonic() - self._since
        if name not in self._costs or not self._done or spent < _CLOCK_FROM_SECONDS:
            return None
        return sum(self._left.values()) * spent / self._done


def _bar(name: str, total: int, unit: str, ahead: _Ahead, *, leave: bool) -> Iterator[Advance]:
    from tqdm import tqdm

    look: dict[str, Any] = {"desc": f"{name:>10}", "unit": unit, "bar_format": _BAR, "leave": leave}
    with _readable(tqdm)(total=total, file=sys.stderr, dynamic_ncols=True, **look) as bar:

        def advance(count: int, detail: str = "", /) -> None:
            ahead.advance(name, count)
            if detail:
                bar.set_postfix_str(detail, refresh=False)
            seconds = ahead.seconds_left(name)
            bar.kin_left = None if seconds is None else f"{duration(seconds)} left in all"
            bar.update(count)

        yield interruptible(advance)


def _readable(tqdm: Any) -> Any:
    """tqdm with rates as people say them, and the time left over all stages where it is known."""

    class Readable(tqdm):  # type: ignore[misc]
        kin_left: str | None = None

        @property
        def format_dict(self) -> dict[str, Any]:
            values: dict[str, Any] = super().format_dict
            done, total = values["n"], values["total"]
            rate = values["rate"] or (done / values["elapsed"] if values["elapsed"] else 0)
            left = self.kin_left
            if left is None and rate and total:
                left = f"{duration((total - done) / rate)} left"
            shown = [speed(rate, values["unit"])] if rate else []
            shown += [left] if left and done < total else []
            shown += [values["postfix"]] if values["postfix"] else []
            bar = self.bar_format.replace("{rate_fmt}{postfix}", ", ".join(shown))
            return {**values, "postfix": None, "bar_format": bar}

    return Readable


def _lines(
    name: str, total: int, unit: str, ahead: _Ahead, *, every_seconds: float, summary: bool
) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int, detail: str = "", /) -> None:
        nonlocal done, last
        done += count
        ahead.advance(name, count)
        if time.monotonic() - last > every_seconds:
            last = time.monotonic()
            rate = done / (last - start)
            seconds = ahead.seconds_left(name)
            stage_left = f", {duration((total - done) / rate)} left" if rate else ""
            left = stage_left if seconds is None else f", {duration(seconds)} left in all"
            detail = f"; {detail}" if detail else ""
            click.echo(f"kin: {name} {done}/{total} {unit}, {speed(rate, unit)}{left}{detail}", err=True)

    yield interruptible(advance)
    if summary:
        click.echo(f"kin: {name} {done}/{total} {unit} in {time.monotonic() - start:.1f} s", err=True)


def speed(rate: float, unit: str) -> str:
    """A rate per second as people say it: "3.2 patches/s", or "12 s per patch" below one per second."""
    if rate >= 1 or rate == 0:
        return f"{rate:.1f} {unit}/s"
    one = unit.removesuffix("es") if unit.endswith("ches") else unit.removesuffix("s")
    return f"{1 / rate:.3g} s per {one}"


def duration(seconds: float) -> str:
    """A duration in the units that people say: "45 s", "12 min", "3 h 20 min", "2 d 5 h"."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


Verbosity = Literal["quiet", "normal", "verbose"]


def verbosity() -> Verbosity:
    """What -q or -v of the running command says."""
    context = click.get_current_context(silent=True)
    found: Verbosity = "normal" if context is None else context.find_root().meta.get(_VERBOSITY, "normal")
    return found


def _set_verbosity(level: Verbosity) -> Any:
    def callback(ctx: click.Context, _param: click.Parameter, given: bool) -> None:
        if given:
            ctx.find_root().meta[_VERBOSITY] = level

    return callback


def add_verbosity(group: click.Group) -> None:
    """Give every command of a group -q and -v, which ``ConsoleProgress`` reads, before its --help."""
    for command in group.commands.values():
        if isinstance(command, click.Group):
            add_verbosity(command)
        else:
            command.params += _verbosity_options()


def _verbosity_options() -> list[click.Option]:
    kinds: tuple[tuple[Verbosity, str], ...] = (
        ("quiet", "Show neither progress nor notes, only errors."),
        ("verbose", "Show progress every 5 seconds."),
    )
    return [
        cloup.Option(
            [f"-{level[0]}", f"--{level}"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set_verbosity(level),
            help=text,
        )
        for level, text in kinds
    ]
