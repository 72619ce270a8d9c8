"""Mean-subtracted, contrast-normalised (MSCN) luminance: what PIQE and NIQE look at.

Each pixel less its local mean, over its local standard deviation plus 1, both under a Gaussian of 7×7 pixels with a
standard deviation of 7/6 (Mittal et al. 2013; Venkatanath et al. 2015).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kin_cli.metrics.colour import Floats, Pixels, luma

RADIUS_PX = 3
"""Pixels that a normalised pixel depends on, on every side."""

_WEIGHTS = np.exp(-0.5 * (np.arange(-RADIUS_PX, RADIUS_PX + 1) / (7 / 6)) ** 2)
_WEIGHTS /= _WEIGHTS.sum()
_BLOCK_PX = 16
_RUN_PX = 6
_ACTIVE = 0.1
_FLAT = 0.1


# FROM metrics.mscn: Mean-subtracted, contrast-normalised (MSCN) luminance: what PIQE and NIQE look at. Each pixel less its local mean, over its local standard deviation plus 1, both under a Gaussian of 7×7 pixels with a standard deviation of 7/6 (Mittal et al. 2013; Venkatanath et al. 2015).


def grey(rgb: Pixels) -> Floats:
    """Luma of 8-bit RGB (h, w, 3), rounded to whole numbers: float64 (h, w), 0 to 255."""
    return np.rint(luma(rgb))


def normalised(values: Floats) -> tuple[Floats, Floats]:
    """MSCN coefficients and local standard deviations of (h, w), each (h - 6, w - 6): the rim is not defined."""
    mean = _blurred(values)
    deviation = np.sqrt(np.abs(_blurred(values**2) - mean**2))
    inner = values[RADIUS_PX:-RADIUS_PX, RADIUS_PX:-RADIUS_PX]
    return (inner - mean) / (deviation + 1), deviation


def _blurred(values: Floats) -> Floats:
    blurred: Floats = ndimage.correlate1d(ndimage.correlate1d(values, _WEIGHTS, axis=0), _WEIGHTS, axis=1)
    return blurred[RADIUS_PX:-RADIUS_PX, RADIUS_PX:-RADIUS_PX]


# FROM metrics.piqe: PIQE: perception-based image quality, without a reference; 0 to 100, lower is better. N. Venkatanath et al., "Blind image quality evaluation using perception based features", NCC 2015. Blocks of 16×16 pixels with enough activity are searched for flat runs along their edges (compression) and for Gaussian noise.


class Piqe:
    """The published definition, over the blocks of all tiles.

    The columns left out of a block's surround, the 8th and the 10th, are those of the authors' own MATLAB code: it
    deletes the 9th of what is left after the 8th. Memory bound: two numbers.
    """

    halo_px = RADIUS_PX
    name = "piqe"
    _freedom, _surround = 1, np.delete(np.arange(_BLOCK_PX), [7, 9])

    def __init__(self) -> None:
        self._active, self._distortion = 0, 0.0

    def measure(self, tile: Pixels) -> Floats:
        """Distortion of each active block of a tile whose sides are multiples of 16, given with its halo of 3 px."""
        coefficients, _ = normalised(grey(tile))
        if coefficients.shape[0] % _BLOCK_PX or coefficients.shape[1] % _BLOCK_PX:
            raise ValueError(
                f"a tile of {coefficients.shape[1]}×{coefficients.shape[0]} px is not made of 16-px blocks"
            )
        rows, cols = (side // _BLOCK_PX for side in coefficients.shape)
        blocks = coefficients.reshape(rows, _BLOCK_PX, cols, _BLOCK_PX).swapaxes(1, 2).reshape(-1, _BLOCK_PX, _BLOCK_PX)
        variance = blocks.var(axis=(1, 2), ddof=self._freedom)
        blocks, variance = blocks[variance > _ACTIVE], variance[variance > _ACTIVE]
        return self._pooled(variance, self._impaired(blocks), self._noisy(blocks, variance))

    def add(self, distortions: Floats) -> None:
        """Take what ``measure`` returned in."""
        self._active += len(distortions)
        self._distortion += float(distortions.sum())

    def figures(self) -> dict[str, float]:
        """The score over all tiles, and the number of active blocks."""
        return {self.name: 100 * (1 + self._distortion) / (1 + self._active), "piqe_blocks": self._active}

    def _pooled(self, variance: Floats, impaired: npt.NDArray[np.bool_], noisy: npt.NDArray[np.bool_]) -> Floats:
        return impaired * (1 - variance) + noisy * variance

    def _impaired(self, blocks: Floats) -> npt.NDArray[np.bool_]:
        """Blocks (n, 16, 16) with a flat run of 6 pixels on one of their four edges."""
        edges = np.stack([blocks[:, 0], blocks[:, -1], blocks[:, :, 0], blocks[:, :, -1]], axis=1)
        runs = np.lib.stride_tricks.sliding_window_view(edges, _RUN_PX, axis=2)
        flat: npt.NDArray[np.bool_] = (runs.std(axis=3, ddof=self._freedom) < _FLAT).any(axis=(1, 2))
        return flat

    def _noisy(self, blocks: Floats, variance: Floats) -> npt.NDArray[np.bool_]:
        """Blocks (n, 16, 16) whose two centre columns vary like the rest of them."""
        sigma = np.sqrt(variance)
        centre = blocks[:, :, 7:9].std(axis=(1, 2), ddof=self._freedom)
        surround = blocks[:, :, self._surround].std(axis=(1, 2), ddof=self._freedom)
        ratio = centre / np.maximum(surround, np.finfo(np.float64).tiny)
        beta = np.abs(sigma - ratio) / np.maximum(sigma, ratio)
        noisy: npt.NDArray[np.bool_] = sigma > 2 * beta
        return noisy


class PiqeOfAuthors(Piqe):
    """What the KIN authors' code calls PIQE: scores squared, and ten times the lowest decile of them pooled.

    Two to five times smaller than PIQE. It also takes biased variances and leaves out columns 8 and 9. Memory bound: 4
    bytes for each block with a score, at most 1/64 byte per pixel, since the decile needs them all.
    """

    name = "piqe_authors"
    _freedom, _surround = 0, np.delete(np.arange(_BLOCK_PX), [7, 8])

    def __init__(self) -> None:
        super().__init__()
        self._scores: list[npt.NDArray[np.float32]] = []

    def add(self, distortions: Floats) -> None:  # noqa: D102
        self._active += len(distortions)
        self._scores.append(distortions[distortions > 0].astype(np.float32))

    def figures(self) -> dict[str, float]:  # noqa: D102
        scores = np.concatenate([np.empty(0, np.float32), *self._scores])
        kept = len(scores) // 10
        lowest = float(np.partition(scores, kept)[:kept].sum(dtype=np.float64)) if kept else 0.0
        return {self.name: 100 * (1 + 10 * lowest) / (1 + self._active), "piqe_blocks": self._active}

    def _pooled(self, variance: Floats, impaired: npt.NDArray[np.bool_], noisy: npt.NDArray[np.bool_]) -> Floats:
        return impaired * (1 - variance) ** 2 + noisy * variance**2
