"""Guides as files: densities of DAB in square cells over a slide, written as an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyvips
from dab import DAB

from kin_cli.geometry import Box, Size

_WHITE = 251.0


def cells_inside(region: Box, shape: tuple[int, int], *, cell_px: float) -> npt.NDArray[np.bool_]:
    """Mask of ``shape``, rows × cols: which cells of ``cell_px``, counted from the slide's corner, lie in a region."""
    inside = np.zeros(shape, bool)
    top, left = round(region.y / cell_px), round(region.x / cell_px)
    inside[top : int(region.bottom / cell_px), left : int(region.right / cell_px)] = True
    return inside


def write_flat(density: npt.NDArray[np.float64], size: Size, mpp: float, output: Path, *, cell_um: float) -> None:
    """Write a pyramidal TIFF of ``size`` that shows DAB only, interpolated between the centres of cells.

    ``density`` (rows, cols) is decadic, of square cells of ``cell_um``, the first at the corner of the slide.

    Raises:
        pyvips.Error: The file cannot be written.
    """
    dye = np.array(DAB) / np.linalg.norm(DAB)
    cell = cell_um / mpp
    colours = _WHITE * 10.0 ** (-density[..., None] * dye)
    image = pyvips.Image.new_from_array(np.pad(colours, ((1, 2), (1, 2), (0, 0)), mode="edge").astype(np.float32))
    # pixel x of the slide lies (x + 0.5) / cell - 0.5 cells from the first cell's centre; the padding adds 1
    offset = 0.5 / cell + 0.5
    flat = image.affine(
        [cell, 0, 0, cell],
        oarea=[0, 0, size.width, size.height],
        idx=-offset,
        idy=-offset,
        interpolate=pyvips.Interpolate.new("bilinear"),
    )
    flat.cast("uchar").copy(interpretation="srgb").tiffsave(
        str(output), tile=True, pyramid=True, compression="jpeg", Q=95, xres=1000 / mpp, yres=1000 / mpp, bigtiff=True
    )
