"""Reduce a guide to what the H&E slide itself predicts, by a regression of brown on local image features.

    kin register he.tif ihc.tif -o registered.json --warped registered.tif --unknown black
    python research/predict_guide.py he.tif registered.tif -o guide.tif --region 0,0,13346,13000

A registered section shows more than H&E can predict (which of two similar groups of cells is positive) and is shifted
by some tens of µm, and one or two slides hold little tumour: a network memorises them. This script instead fits a ridge
regression of which cells of 32 µm are brown, on the densities, textures and nuclei of the H&E in and around them. Each
feature is ranked within its piece of tissue; only cells in ``--region`` are used for the fit. The predictions are given
the guide's distribution and written as a guide of flat brown for the whole slide. The script prints their agreement
with the guide within the region and beyond it (Pearson's correlation; area under the ROC curve of cells above a density
of 0.2); only the latter says whether the guide is worth using. It was made for ``kin train cut --guide``, which was
removed (see README.md).
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import pyvips
from classifier import roc_area
from dab import DAB, EOSIN, HAEMATOXYLIN, dab_density
from guide_file import cells_inside, write_flat
from scipy import ndimage, stats

from kin_cli.commands.parameters import RegionType
from kin_cli.errors import InputError, KinError
from kin_cli.geometry import Box, Grid
from kin_cli.metrics.colour import pooled
from kin_cli.pyramid.writer import part_file
from kin_cli.slide.open import open_slide
from kin_cli.slide.view import SlideView, open_view

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_UM = 1.0  # per pixel of what is looked at
_CELL_PX = 32
_BLOCK_PX = 1024
_MARGIN_PX = 64
_WIDTHS_PX = (1.0, 2.0, 4.0, 8.0)  # of the textures
_AROUND_CELLS = (1.5,)  # standard deviations of the neighbourhoods beside the cell itself: what a generator sees
_RIDGE = 100.0
_BACKGROUND, _WHITE = 243.0, 251.0
_PALEST = 225  # mean grey level from which on a pixel is background
_NUCLEUS, _DARK, _PALE = 0.9, 1.2, 0.35  # natural optical densities
_TUMOUR = 0.2  # decadic
_BLACK = 25


def look(pixels: npt.NDArray[np.uint8]) -> Floats:
    """Features (h / 32 - 4, w / 32 - 4, n) of the cells of H&E (h, w, 3) inside a margin of 64 px.

    The first feature is the background fraction.
    """
    stains = np.array([HAEMATOXYLIN, EOSIN, DAB])
    density = -np.log(np.clip(pixels, 2, 255) / _BACKGROUND)
    unmixed = density @ np.linalg.inv(stains / np.linalg.norm(stains, axis=1, keepdims=True))
    haematoxylin, eosin = unmixed[..., 0], unmixed[..., 1]
    layers = [pixels.mean(axis=-1) > _PALEST, haematoxylin, eosin, unmixed[..., 2], density.sum(axis=-1)]
    layers += [haematoxylin > _NUCLEUS, np.maximum(haematoxylin - _DARK, 0.0), haematoxylin + eosin < _PALE]
    found = [pooled(layer.astype(float), _CELL_PX) for layer in layers]
    for dye in (haematoxylin, eosin):
        for width in _WIDTHS_PX:
            band = ndimage.gaussian_filter(dye, width) - ndimage.gaussian_filter(dye, 1.6 * width)
            found.append(np.sqrt(pooled(band**2, _CELL_PX)))
    edge = _MARGIN_PX // _CELL_PX
    return np.stack(found, axis=-1)[edge:-edge, edge:-edge]


def brown(pixels: npt.NDArray[np.uint8]) -> Floats:
    """(h, w, 3) of a guide as cells (h / 32, w / 32, 2): decadic density of DAB, and the fraction that is known."""
    density = np.maximum(dab_density(pixels, white=_WHITE), 0.0)
    return pooled(np.stack([density, (pixels.max(axis=-1) > _BLACK).astype(float)], axis=-1), _CELL_PX)


def survey(source: SlideView, guide: SlideView) -> tuple[Floats, Floats]:
    """``look`` and ``brown`` of all cells, (rows, cols, n); what lies beyond the slide is mirrored."""
    grid = Grid(source.size, _BLOCK_PX)
    looks = [look(source.read(grid.box(cell).grown(_MARGIN_PX))) for cell in grid]
    browns = [brown(guide.read(grid.box(cell))) for cell in grid]
    return _whole(looks, grid), _whole(browns, grid)


def _whole(blocks: list[Floats], grid: Grid) -> Floats:
    """Blocks of cells, one of each cell of the grid in its order, side by side; without what lies beyond the slide."""
    rows = [np.concatenate(blocks[i : i + grid.cols], axis=1) for i in range(0, len(blocks), grid.cols)]
    height, width = (math.ceil(side / _CELL_PX) for side in (grid.size.height, grid.size.width))
    return np.concatenate(rows)[:height, :width]


def with_neighbourhood(features: Floats, tissue: Mask) -> Floats:
    """The features of each cell and their means over the tissue around it, at every width."""
    weight = tissue.astype(float)
    layers = [features]
    for sigma in _AROUND_CELLS:
        near = np.maximum(ndimage.gaussian_filter(weight, sigma), 1e-3)[..., None]
        layers.append(ndimage.gaussian_filter(features * weight[..., None], (sigma, sigma, 0)) / near)
    return np.concatenate(layers, axis=-1)


def ranked_by_piece(features: Floats, tissue: Mask, pieces: npt.NDArray[np.int32]) -> Floats:
    """Features (rows, cols, n) as normal scores of their ranks within each piece of tissue; 0 for background.

    One piece is thicker or stained deeper than another, and what is dense in one would be everywhere in the other.
    """
    scores = np.zeros_like(features)
    for piece in np.unique(pieces[tissue]):
        own = tissue & (pieces == piece)
        ranks = stats.rankdata(features[own], axis=0)
        scores[own] = stats.norm.ppf((ranks - 0.5) / len(ranks))
    return scores


def predicted(features: Floats, density: Floats, fit: Mask) -> Floats:
    """Density of DAB for all cells: that of the same rank among those of ``fit``.

    Ranks are by a ridge regression of which cells of ``fit`` have tumour: of the density itself, the few densest cells
    would decide.
    """
    spread = features[fit].std(axis=0)
    unit = (features - features[fit].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    known = unit[fit]
    gram = known.T @ known + _RIDGE * np.eye(known.shape[1])
    tumour = (density[fit] > _TUMOUR).astype(float)
    scores = unit @ np.linalg.solve(gram, known.T @ (tumour - tumour.mean()))
    matched: Floats = np.interp(scores, np.sort(scores[fit]), np.sort(density[fit]))
    return matched


def agreement(found: Floats, wanted: Floats) -> str:
    """Correlation, and area under the ROC curve."""
    tumour = wanted > _TUMOUR
    if min(tumour.sum(), (~tumour).sum()) == 0 or found.std() == 0:
        return f"{len(wanted)} cells, too alike to compare"
    wins = roc_area(found[tumour], found[~tumour])
    correlation = stats.pearsonr(found, wanted).statistic
    return f"{len(wanted)} cells, correlation {correlation:.2f}, ROC {wins:.2f}"


def predict(source: Path, registered: Path, box: Box | None, output: Path) -> None:
    with open_slide(source) as slide, open_slide(registered) as other:
        if slide.mpp is None:
            raise InputError(f"{source}: does not say its resolution", "the cells are measured in µm")
        if slide.levels[0] != other.levels[0]:
            raise InputError(
                f"{registered}: not the size of {source}", "make it with kin register --warped --unknown black"
            )
        other.mpp, size, mpp = slide.mpp, slide.levels[0], slide.mpp
        features, found = survey(open_view(slide, mpp=_UM), open_view(other, mpp=_UM))
    density, tissue = found[..., 0], features[..., 0] < 0.6
    counted = tissue & (found[..., 1] == 1.0)
    box = box or Box(0, 0, size.width, size.height)
    inside = cells_inside(box, counted.shape, cell_px=_CELL_PX * _UM / mpp)
    if not (counted & inside).any():
        raise InputError(f"{registered}: nothing is known of the tissue in the region", "name another --region")
    pieces, _ = ndimage.label(found[..., 1] == 1.0)  # black, the unknown, lies between them
    scores = ranked_by_piece(with_neighbourhood(features, tissue), tissue, pieces)
    density_found = predicted(scores, density, counted & inside)
    for where, mask in (("within the region", counted & inside), ("beyond it", counted & ~inside)):
        if mask.any():
            print(f"{where}: {agreement(density_found[mask], density[mask])}")
    write_flat(np.where(tissue, density_found, 0.0), size, mpp, output, cell_um=_CELL_PX * _UM)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("registered", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The predicted guide, a TIFF.")
@click.option("--region", type=RegionType(), help="Part of the slide to learn from; all of it if left out.")
def main(source: Path, registered: Path, output: Path, region: Box | None) -> None:
    """Reduce a REGISTERED section to what the H&E slide SOURCE itself tells."""
    try:
        with part_file(output.parent, output, 0) as part:
            predict(source, registered, region, part)
    except (KinError, pyvips.Error) as error:
        sys.exit(f"error: {error}".strip().replace("\n", " "))


if __name__ == "__main__":
    main()
