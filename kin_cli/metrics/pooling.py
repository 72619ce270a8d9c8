"""Pictures averaged over squares."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from kin_cli.metrics.colour import Floats


def pooled(values: NDArray[Any], step: int) -> Floats:
    """Means (h // step, w // step, …) over squares of (h, w, …); what is left at the right and bottom is ignored."""
    rows, cols = (side // step for side in values.shape[:2])
    squares = values[: rows * step, : cols * step].reshape(rows, step, cols, step, *values.shape[2:])
    means: Floats = squares.mean(axis=(1, 3))
    return means
