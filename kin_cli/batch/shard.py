"""Shard i of n: a part of some work, so that n scheduler jobs do all of it and nothing twice."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

from kin_cli.errors import UsageError

Item = TypeVar("Item")

# Slurm, PBS, Torque, Grid Engine, LSF. Outside an array Grid Engine says "undefined" and LSF 0.
ARRAY_VARIABLES = ("SLURM_ARRAY_TASK_ID", "PBS_ARRAY_INDEX", "PBS_ARRAYID", "SGE_TASK_ID", "LSB_JOBINDEX")
_NO_INDEX = ("", "undefined")


@dataclass(frozen=True)
class Shard:
    """Shard ``index`` (1 … ``total``) of ``total``."""

    index: int
    total: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.total:
            raise UsageError(
                f"there is no shard {self.index} of {self.total}",
                f"shards count from 1 to {self.total}: submit --array=1-{self.total}",
            )

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str]) -> Shard:
        """Parse ``3/16``, or ``auto/16`` for the index of this task in a scheduler's array.

        The total is never taken from the scheduler: a single task that is submitted again reports a total of 1. Raises
        ``UsageError`` for any other text, and for ``auto`` outside an array.
        """
        match = re.fullmatch(r"(auto|\d+)/(\d+)", text.strip())
        if match is None or int(match[2]) < 1:
            raise UsageError(f"'{text}' is not a shard", "write 3/16, or auto/16 in an array job")
        index = _array_index(environment) if match[1] == "auto" else int(match[1])
        return cls(index, int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}-of-{self.total}"

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return every ``total``-th item, so that every shard gets large and small ones."""
        return items[self.index - 1 :: self.total]

    def rows(self, work: Sequence[float]) -> range:
        """Return consecutive rows, given the work in each row, so that all shards have about the same work."""
        ends = list(accumulate(work, initial=0.0))
        middles = [(start + end) / 2 for start, end in pairwise(ends)]
        first, last = (bisect_left(middles, ends[-1] * index / self.total) for index in (self.index - 1, self.index))
        return range(0 if self.index == 1 else first, len(middles) if self.index == self.total else last)


def _array_index(environment: Mapping[str, str]) -> int:
    for name in ARRAY_VARIABLES:
        value = environment.get(name, "")
        if value in _NO_INDEX or (name == "LSB_JOBINDEX" and value == "0"):
            continue
        if not value.isdecimal():
            raise UsageError(f"{name} is '{value}', not a whole number", "write the shard as 3/16")
        return int(value)
    raise UsageError(
        "auto works in array jobs only, and this is none",
        f"none of {', '.join(ARRAY_VARIABLES)} is set; write 3/16",
    )
