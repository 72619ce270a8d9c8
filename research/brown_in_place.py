"""Compare a translation's DAB with that of a serial section registered to its source.

    python research/brown_in_place.py translated.ome.tif guide.tif --region 0,13312,4096,6300 [--translated-region …]

``guide.tif`` comes from ``register_sections.py``. Both images are divided into areas of 64, 128 and 256 px of the
guide's level 0. For each size the table gives the correlation of their mean densities of DAB (Pearson's and
Spearman's), the means of both, and the area under the ROC curve with which the translation's DAB tells areas with
tumour from others (0.5 is chance; an area has tumour if the guide's mean is above 0.2). Areas of background or beyond
the guide do not count. Registration is accurate to some tens of µm: only the larger areas are a fair test.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from classifier import roc_area
from dab import dab_density
from scipy import stats

from kin_cli.commands.parameters import RegionType
from kin_cli.errors import KinError, UsageError
from kin_cli.geometry import Box, Grid
from kin_cli.metrics.colour import pooled
from kin_cli.slide.open import open_slide
from kin_cli.slide.view import SlideView, open_view

Floats = npt.NDArray[np.float64]

_SMALLEST_PX = 64
_SIZES_PX = (64, 128, 256)
_BLOCK_PX = 1024
_TUMOUR = 0.2
_BACKGROUND = 235  # mean grey level from which on an area is empty
_BLACK = 25  # a guide is unknown where its brightest channel is below


def areas(translated: SlideView, guide: SlideView) -> npt.NDArray[np.float64]:
    """(rows, cols, 3) of the smallest areas: decadic DAB of translation and guide, and 1 where both count."""
    grid = Grid(guide.size, _BLOCK_PX)
    per_block, by_area = _BLOCK_PX // _SMALLEST_PX, partial(pooled, step=_SMALLEST_PX)
    found = np.zeros((grid.rows * per_block, grid.cols * per_block, 3))
    for cell in grid:
        box = grid.box(cell)
        ours, theirs = translated.read(box), guide.read(box)
        inside = np.ones(ours.shape[:2], bool)
        inside[guide.size.height - box.y :] = False
        inside[:, guide.size.width - box.x :] = False
        counted = inside & (theirs.max(axis=-1) > _BLACK)
        grey = np.minimum(by_area(ours.mean(axis=-1)), by_area(theirs.mean(axis=-1)))
        layers = [by_area(np.maximum(dab_density(pixels, white=250.0), 0.0)) for pixels in (ours, theirs)]
        layers.append(((grey < _BACKGROUND) & (by_area(counted.astype(float)) == 1.0)).astype(float))
        rows, cols = cell.row * per_block, cell.col * per_block
        found[rows : rows + per_block, cols : cols + per_block] = np.stack(layers, axis=-1)
    return found


def merged(found: Floats, factor: int) -> Floats:
    """(n, 2): DAB of translation and guide in areas that many times as wide, of which at least half counts."""
    rows, cols = (n // factor * factor for n in found.shape[:2])
    cells = found[:rows, :cols].reshape(rows // factor, factor, cols // factor, factor, 3).swapaxes(1, 2)
    cells = cells.reshape(-1, factor**2, 3)
    weight = cells[..., 2:]
    kept = weight.mean(axis=(1, 2)) >= 0.5
    sums = (cells[kept, :, :2] * weight[kept]).sum(axis=1)
    pairs: Floats = sums / weight[kept].sum(axis=1)
    return pairs


def scores(pairs: Floats) -> tuple[float, float, float, float, float]:
    """Pearson's and Spearman's correlation, mean DAB of translation and of guide, area under the ROC curve."""
    ours, theirs = pairs.T
    tumour = theirs > _TUMOUR
    wins = np.nan
    if 0 < tumour.sum() < len(tumour):
        wins = roc_area(ours[tumour], ours[~tumour])
    pearson, spearman = stats.pearsonr(ours, theirs).statistic, stats.spearmanr(ours, theirs).statistic
    return pearson, spearman, ours.mean(), theirs.mean(), wins


@click.command()
@click.argument("translated", type=click.Path(path_type=Path))
@click.argument("guide", type=click.Path(path_type=Path))
@click.option("--region", type=RegionType(), help="Part of the guide; all of it if left out.")
@click.option("--translated-region", type=RegionType(), help="Part of the translation; all of it if left out.")
def main(translated: Path, guide: Path, region: Box | None, translated_region: Box | None) -> None:
    """Compare the DAB of a translation with that of a registered serial section, the GUIDE."""
    try:
        with open_slide(translated) as one, open_slide(guide) as other:
            ours, theirs = open_view(one, region=translated_region), open_view(other, region=region)
            if ours.size != theirs.size:
                raise UsageError(f"{translated}: {ours.size} px against {theirs.size} px", "name --region")
            found = areas(ours, theirs)
    except KinError as error:
        sys.exit(f"error: {error}")
    print("area px  areas  Pearson  Spearman  DAB translated  DAB real  ROC")
    for side in _SIZES_PX:
        pairs = merged(found, side // _SMALLEST_PX)
        if len(pairs) > 2:
            row = scores(pairs)
            print(f"{side:7} {len(pairs):6} {row[0]:8.3f} {row[1]:9.3f} {row[2]:15.3f} {row[3]:9.3f} {row[4]:4.2f}")


if __name__ == "__main__":
    main()
