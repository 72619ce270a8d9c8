"""Kernels that smooth the table of statistics (Eq. 5-6): ``1``, ``constant:n``, ``gaussian:n[:std]``, ``global``.

K[u, v] = k[u] · k[v] with Σ k = 1, for u and v from -radius to radius.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kin_cli.errors import UsageError
from kin_cli.geometry import Doubles

AUTHORS_STD = 3.0  # standard deviation in the paper's released code, for every kernel size
_KNOWN = "known kernels: 1, constant:n, gaussian:n, gaussian:n:std, global; n odd, such as gaussian:7"


@dataclass(frozen=True)
class Kernel:
    """A separable kernel with sum 1.

    ``size`` is the side in cells. It is odd; 1 leaves the table unchanged; 0 stands for ``global``, the mean of the
    whole table, which is the paper's size ∞. ``std`` is the standard deviation in cells, used by ``gaussian`` only.
    """

    kind: Literal["constant", "gaussian", "global"]
    size: int
    std: float = AUTHORS_STD

    @classmethod
    def parse(cls, text: str) -> Kernel:
        """Parse a specification such as ``gaussian:7``. Raises ``UsageError`` if it is not valid."""
        name, *numbers = text.strip().lower().split(":")
        if name == "global" and not numbers:
            return cls("global", 0)
        if name == "1" and not numbers:
            return cls("constant", 1)
        try:
            if name == "constant" and len(numbers) == 1:
                return cls("constant", _odd(numbers[0]))
            if name == "gaussian" and len(numbers) in (1, 2):
                std = float(numbers[1]) if len(numbers) == 2 else AUTHORS_STD
                if not (math.isfinite(std) and std > 0):
                    raise ValueError("the standard deviation must be above 0")
                return cls("gaussian", _odd(numbers[0]), std)
        except ValueError as error:
            raise UsageError(f"kernel '{text}': {error}", _KNOWN) from None
        raise UsageError(f"kernel '{text}' is not known", _KNOWN)

    @property
    def radius(self) -> int:
        """Number of cells on each side of the middle one; 0 for size 1 and for ``global``."""
        return max(0, self.size - 1) // 2

    def taps(self) -> Doubles:
        """The one-dimensional factor k, shape (size,), sum 1; the kernel is the outer product of k with itself."""
        offsets = np.arange(self.size) - self.radius
        taps = np.exp(-0.5 * (offsets / self.std) ** 2) if self.kind == "gaussian" else np.ones(self.size)
        normalized: Doubles = taps / taps.sum()
        return normalized

    def __str__(self) -> str:
        if self.kind == "global":
            return "global"
        if self.size == 1:
            return "1"
        std = f":{self.std:g}" if self.kind == "gaussian" and self.std != AUTHORS_STD else ""
        return f"{self.kind}:{self.size}{std}"


def _odd(text: str) -> int:
    try:
        size = int(text)
    except ValueError:
        raise ValueError(f"the size '{text}' is not a whole number") from None
    if size < 1 or size % 2 == 0:
        raise ValueError(f"the size must be odd and at least 1, not {size}")
    return size
