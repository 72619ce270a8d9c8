"""A progress that remembers what it was told, and deaths in the middle of the work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field


class Killed(BaseException):
    """A death in the middle of the work."""


@dataclass
class Watcher:
    """Remembers stages and notes, and calls ``at`` with the stage and the number of its finished units."""

    at: Callable[[str, int], None] = lambda stage, done: None
    stages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ahead: dict[str, tuple[int, float]] = field(default_factory=dict)

    def outlook(self, work: Mapping[str, tuple[int, float]]) -> None:
        self.ahead = dict(work)

    @contextlib.contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        self.stages.append(name)
        done = 0

        def advance(tiles: int) -> None:
            nonlocal done
            done += tiles
            self.at(name, done)

        self.at(name, 0)
        yield advance

    def note(self, message: str) -> None:
        self.notes.append(message)


def die_at(stage: str, done: int) -> Callable[[str, int], None]:
    """For a ``Watcher``: raise ``Killed`` as soon as ``done`` units of a stage are finished."""

    def at(now: str, tiles: int) -> None:
        if now == stage and tiles >= done:
            raise Killed

    return at
