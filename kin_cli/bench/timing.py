"""Timing a piece of work: a warm-up, repeats of at least some length, the median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds per unit of work: the median of the repeats, the fastest and the slowest."""

    seconds: float
    fastest: float
    slowest: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """From one number for each repeat."""
        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds))

    def per(self, units: float) -> Timing:
        """The same for a unit of which the work had ``units``."""
        return Timing(self.seconds / units, self.fastest / units, self.slowest / units, self.repeats)


def repeated(work: Callable[[], object], *, repeats: int, at_least_s: float) -> Timing:
    """Seconds per call of ``work``, which is called once before to warm up, then in each repeat until time is up."""
    work()
    return Timing.of([_one(work, at_least_s) for _ in range(repeats)])


def _one(work: Callable[[], object], at_least_s: float) -> float:
    calls, start = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= at_least_s:
            return elapsed / calls
