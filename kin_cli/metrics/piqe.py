"""PIQE: perception-based image quality without a reference; 0 to 100, lower is better.

N. Venkatanath et al., "Blind image quality evaluation using perception based features", NCC 2015. Active blocks of
16×16 pixels are tested for flat runs along their edges (compression) and for Gaussian noise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kin_cli.geometry import Doubles, Pixels
from kin_cli.metrics.colour import blurred, gaussian, luma

RADIUS_PX = 3
"""Radius of the neighbourhood that an MSCN coefficient depends on."""

_WEIGHTS = gaussian(RADIUS_PX, 7 / 6)
_BLOCK_PX = 16
_RUN_PX = 6
_ACTIVE = 0.1  # variance above which a block is active
_FLAT = 0.1  # standard deviation below which a run is flat


class Piqe:
    """PIQE as published, over the blocks of all tiles.

    The surround of a block's centre leaves out columns 8 and 10, as the authors' MATLAB code does: it deletes the 8th
    column, then the 9th of those left. Memory bound: two numbers.
    """

    halo_px = RADIUS_PX
    name = "piqe"
    _freedom, _surround = 1, np.delete(np.arange(_BLOCK_PX), [7, 9])

    def __init__(self) -> None:
        self._active, self._distortion = 0, 0.0

    def measure(self, tile: Pixels) -> Doubles:
        """Distortion of each active block, (active,), of a tile (sides multiples of 16) given with a halo of 3 px."""
        coefficients, _ = normalized(grey(tile))
        if coefficients.shape[0] % _BLOCK_PX or coefficients.shape[1] % _BLOCK_PX:
            raise ValueError(
                f"a tile of {coefficients.shape[1]}×{coefficients.shape[0]} px is not made of 16-px blocks"
            )
        rows, cols = (side // _BLOCK_PX for side in coefficients.shape)
        blocks = coefficients.reshape(rows, _BLOCK_PX, cols, _BLOCK_PX).swapaxes(1, 2).reshape(-1, _BLOCK_PX, _BLOCK_PX)
        variance = blocks.var(axis=(1, 2), ddof=self._freedom)
        blocks, variance = blocks[variance > _ACTIVE], variance[variance > _ACTIVE]
        return self._pooled(variance, self._impaired(blocks), self._noisy(blocks, variance))

    def add(self, distortions: Doubles) -> None:
        """Add a result of ``measure``."""
        self._active += len(distortions)
        self._distortion += float(distortions.sum())

    def values(self) -> dict[str, float]:
        """Score over all tiles, and number of active blocks."""
        return {self.name: 100 * (1 + self._distortion) / (1 + self._active), "piqe_blocks": self._active}

    def _pooled(self, variance: Doubles, impaired: npt.NDArray[np.bool_], noisy: npt.NDArray[np.bool_]) -> Doubles:
        return impaired * (1 - variance) + noisy * variance

    def _impaired(self, blocks: Doubles) -> npt.NDArray[np.bool_]:
        """Select the blocks (n, 16, 16) with a flat run of 6 pixels on one of their four edges: (n,)."""
        edges = np.stack([blocks[:, 0], blocks[:, -1], blocks[:, :, 0], blocks[:, :, -1]], axis=1)
        runs = np.lib.stride_tricks.sliding_window_view(edges, _RUN_PX, axis=2)
        flat: npt.NDArray[np.bool_] = (runs.std(axis=3, ddof=self._freedom) < _FLAT).any(axis=(1, 2))
        return flat

    def _noisy(self, blocks: Doubles, variance: Doubles) -> npt.NDArray[np.bool_]:
        """Select the blocks (n, 16, 16) whose two centre columns vary as much as the others: (n,)."""
        sigma = np.sqrt(variance)
        centre = blocks[:, :, 7:9].std(axis=(1, 2), ddof=self._freedom)
        surround = blocks[:, :, self._surround].std(axis=(1, 2), ddof=self._freedom)
        ratio = centre / np.maximum(surround, np.finfo(np.float64).tiny)
        beta = np.abs(sigma - ratio) / np.maximum(sigma, ratio)
        noisy: npt.NDArray[np.bool_] = sigma > 2 * beta
        return noisy


class PiqeOfAuthors(Piqe):
    """PIQE of the KIN authors' code: variances squared, and ten times the sum of the lowest tenth of the scores.

    Two to five times smaller than PIQE. It also takes biased variances and leaves out columns 8 and 9. Memory bound: 4
    bytes per block with a score, at most 1/64 byte per pixel, since the lowest tenth is known only in the end.
    """

    name = "piqe_authors"
    _freedom, _surround = 0, np.delete(np.arange(_BLOCK_PX), [7, 8])

    def __init__(self) -> None:
        super().__init__()
        self._scores: list[npt.NDArray[np.float32]] = []

    def add(self, distortions: Doubles) -> None:  # noqa: D102
        self._active += len(distortions)
        self._scores.append(distortions[distortions > 0].astype(np.float32))

    def values(self) -> dict[str, float]:  # noqa: D102
        scores = np.concatenate([np.empty(0, np.float32), *self._scores])
        kept = len(scores) // 10
        lowest = float(np.partition(scores, kept)[:kept].sum(dtype=np.float64)) if kept else 0.0
        return {self.name: 100 * (1 + 10 * lowest) / (1 + self._active), "piqe_blocks": self._active}

    def _pooled(self, variance: Doubles, impaired: npt.NDArray[np.bool_], noisy: npt.NDArray[np.bool_]) -> Doubles:
        return impaired * (1 - variance) ** 2 + noisy * variance**2


def grey(rgb: Pixels) -> Doubles:
    """Luma (h, w) of 8-bit RGB (h, w, 3), rounded to whole numbers, 0 to 255."""
    return np.rint(luma(rgb))


def normalized(values: Doubles) -> tuple[Doubles, Doubles]:
    """Return MSCN coefficients and local standard deviations of luma (h, w), each (h - 6, w - 6).

    Mean-subtracted, contrast-normalized luma, which both PIQE and NIQE measure: (luma - local mean) / (local standard
    deviation + 1), both under a Gaussian of 7×7 pixels with a standard deviation of 7/6 (Mittal et al. 2013;
    Venkatanath et al. 2015).
    """
    mean = blurred(values, _WEIGHTS)
    deviation = np.sqrt(np.abs(blurred(values**2, _WEIGHTS) - mean**2))
    inner = values[RADIUS_PX:-RADIUS_PX, RADIUS_PX:-RADIUS_PX]
    return (inner - mean) / (deviation + 1), deviation
