"""From the pale brown of an uncertain generator's translation to a guide of dense islands.

    kin translate he.tif --model first.safetensors --seamless -o translated.ome.tif
    python research/sharpen_guide.py he.tif translated.ome.tif -o guide.tif --region 0,0,13346,13000
    python research/train_with_kin.py he.tif guide.tif --start first.safetensors -o second.safetensors

One or two slides say little about where a stain belongs, and where a generator trained by regression is uncertain, it
predicts weak staining. It still ranks places well. This script averages its brown over 9 µm, and makes the highest
``--fraction`` of the tissue dense brown and the rest free of it, so that a generator trained with the guide has nothing
left to guess. Staining changes from one piece of tissue to the next, and a generator sees differences only within what
is normalized together. Ranks are therefore, with weight ``--local``, those within 0.5 mm, and otherwise those of the
whole region: 0.6 suits InstanceNorm, 0.9 KIN (``train_with_kin.py``).

``he2syn.toml`` also used its guides in ``kin train cut --guide-aligned``, an option that was removed (see README.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import pyvips
from dab import dab_density
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
_CELL_PX = 2
_BLOCK_PX = 1024
_PALEST, _WHITE = 225, 251.0  # mean grey level from which on H&E is background; background of the translation
_TISSUE = 0.6  # least tissue fraction of a cell that counts
_AVERAGED_UM, _AROUND_UM = 9.0, 550.0  # standard deviations
_COARSE = 8  # cells to a side of those of which surroundings are taken
_LEAST_SPREAD = 0.4  # of normal scores, of a neighbourhood; one that is all alike is not stretched further
_SOFT = 0.06
_DENSE = 1.3  # decadic density of DAB


def survey(source: SlideView, translated: SlideView) -> tuple[Floats, Floats]:
    """Tissue fraction of the source and decadic density of DAB of the translation, of all whole cells: (rows, cols)."""
    rows, cols = source.size.height // _CELL_PX, source.size.width // _CELL_PX
    found = np.zeros((2, rows, cols))
    for cell in (grid := Grid(source.size, _BLOCK_PX)):
        box = grid.box(cell)
        tissue = pooled(source.read(box).mean(axis=-1) < _PALEST, _CELL_PX)
        density = pooled(np.maximum(dab_density(translated.read(box), white=_WHITE), 0.0), _CELL_PX)
        part = found[:, box.y // _CELL_PX :, box.x // _CELL_PX :][:, : len(tissue), : tissue.shape[1]]
        part[:] = np.stack([tissue, density])[:, : part.shape[1], : part.shape[2]]
    return found[0], found[1]


def normal_scores(values: Floats, among: Mask) -> Floats:
    """Values as the normal scores of their ranks among those of a mask."""
    reference = np.sort(values[among])
    ranks = np.searchsorted(reference, values) / len(reference)
    scores: Floats = stats.norm.ppf(np.clip(ranks, 0.0005, 0.9995))
    return scores


def standing_out(scores: Floats, tissue: Mask) -> Floats:
    """How many standard deviations of the tissue around it each cell lies above its mean."""

    def around(values: Floats) -> Floats:
        return ndimage.gaussian_filter(values, _AROUND_UM / (_COARSE * _CELL_PX * _UM))

    side = [(0, -length % _COARSE) for length in scores.shape]
    known, values = np.pad(tissue.astype(float), side), np.pad(scores * tissue, side)
    weight = np.maximum(around(pooled(known, _COARSE)), 1e-3)
    mean = around(pooled(values, _COARSE)) / weight
    spread = np.sqrt(np.maximum(around(pooled(values**2, _COARSE)) / weight - mean**2, 0.0))
    mean, spread = (
        ndimage.zoom(layer, _COARSE, order=1, grid_mode=True, mode="nearest")[: scores.shape[0], : scores.shape[1]]
        for layer in (mean, spread)
    )
    return (scores - mean) / np.maximum(spread, _LEAST_SPREAD)


def islands(density: Floats, tissue_fraction: Floats, inside: Mask, *, fraction: float, local: float) -> Floats:
    """Density of the guide: 0 or ``_DENSE`` but for narrow borders, dense in ``fraction`` of the tissue ``inside``."""
    sigma = _AVERAGED_UM / (_CELL_PX * _UM)
    weight = ndimage.gaussian_filter(tissue_fraction, sigma)
    level = (
        ndimage.gaussian_filter(density * tissue_fraction, sigma) / np.maximum(weight, 0.05) * np.minimum(weight, 1.0)
    )
    tissue = tissue_fraction > _TISSUE
    learnt = tissue & inside
    scores = normal_scores(level, learnt)
    whole = (scores - scores[learnt].mean()) / scores[learnt].std()
    order = local * standing_out(scores, tissue) + (1.0 - local) * whole
    steps = (order - np.quantile(order[learnt], 1.0 - fraction)) / _SOFT
    dense = np.where(tissue_fraction > 0.25, 1.0 / (1.0 + np.exp(-np.clip(steps, -50.0, 50.0))), 0.0)
    smooth: Floats = _DENSE * ndimage.gaussian_filter(dense, 0.7)
    return smooth


def sharpen(source: Path, translated: Path, output: Path, *, box: Box | None, fraction: float, local: float) -> None:
    with open_slide(source) as slide, open_slide(translated) as other:
        if slide.mpp is None:
            raise InputError(f"{source}: does not say its resolution", "the cells are measured in µm")
        if slide.levels[0] != other.levels[0]:
            raise InputError(f"{translated}: not the size of {source}", "translate all of the slide")
        other.mpp, size, mpp = slide.mpp, slide.levels[0], slide.mpp
        tissue, density = survey(open_view(slide, mpp=_UM), open_view(other, mpp=_UM))
    box = box or Box(0, 0, size.width, size.height)
    inside = cells_inside(box, tissue.shape, cell_px=_CELL_PX * _UM / mpp)
    learnt = density[inside & (tissue > _TISSUE)]
    if learnt.size == 0 or learnt.std() == 0.0:
        raise InputError(f"{translated}: no brown in the tissue of the region", "has its generator seen a guide?")
    found = islands(density, tissue, inside, fraction=fraction, local=local)
    for where, mask in (("region", inside), ("the rest", ~inside)):
        if (counted := mask & (tissue > _TISSUE)).any():
            print(f"{where}: {(found[counted] > 0.5 * _DENSE).mean():.0%} of the tissue is brown")
    write_flat(found, size, mpp, output, cell_um=_CELL_PX * _UM)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("translated", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Guide to write (TIFF).")
@click.option("--region", type=RegionType(), help="Rectangle of the slide to train on.  [default: all of it]")
@click.option(
    "--fraction",
    type=click.FloatRange(0.01, 0.9),
    default=0.18,
    show_default=True,
    help="Fraction of the tissue that becomes brown.",
)
@click.option(
    "--local",
    type=click.FloatRange(0.0, 1.0),
    default=0.6,
    show_default=True,
    help="Weight of the rank within 0.5 mm; the rest is the rank within the region.",
)
def main(source: Path, translated: Path, output: Path, region: Box | None, fraction: float, local: float) -> None:
    """Make a guide of dense islands from a TRANSLATED slide whose brown is pale, and the H&E slide SOURCE."""
    try:
        with part_file(output.parent, output, 0) as part:
            sharpen(source, translated, part, box=region, fraction=fraction, local=local)
    except (KinError, pyvips.Error) as error:
        sys.exit(f"error: {error}".strip().replace("\n", " "))


if __name__ == "__main__":
    main()
