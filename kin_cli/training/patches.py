"""Patches of one stain, drawn at random places of slides and images; nothing is cropped beforehand.

The patch of a number depends on the seed and that number alone, so that neither threads nor an interruption change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kin_cli.errors import InputError, UsageError
from kin_cli.evaluation.tiles import tissue_boxes
from kin_cli.geometry import Box, Grid, Size
from kin_cli.slide.base import Pixels, Slide
from kin_cli.slide.mask_file import tissue_mask
from kin_cli.slide.open import open_slide
from kin_cli.slide.view import SlideView, open_view
from kin_cli.training.settings import PatchSettings, TrainSettings

SUFFIXES = frozenset(
    {
        ".bif",
        ".czi",
        ".jpeg",
        ".jpg",
        ".mrxs",
        ".ndpi",
        ".png",
        ".scn",
        ".svs",
        ".svslide",
        ".tif",
        ".tiff",
        ".vms",
        ".vmu",
    }
)
_CELLS_PER_PATCH = 8
_STREAMS = {"source": 0, "target": 1}
_SIDE_PATCHES = 8


# FROM training.patches: Patches of one stain, drawn at random places of slides and images; nothing is cropped beforehand. The patch of a number depends on the seed and that number alone, so that neither threads nor an interruption change it.


def find_images(path: Path) -> list[Path]:
    """The file itself, or the slides and images of a folder by name; ``UsageError`` where there are none.

    A folder of DICOM files is one slide.
    """
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    if not found and (dicom := sorted(path.glob("*.dcm"))):
        return dicom[:1]
    if not found:
        raise UsageError(f"{path}: holds no slide or image", f"looked for {', '.join(sorted(SUFFIXES))}")
    return found


@dataclass(frozen=True)
class _Places:
    """Corners of candidate patches of one kind on a lattice of ``cell`` px: (image, row, col), shape (n, 3)."""

    corners: NDArray[np.int32]
    cell: int

    def pick(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """Image, x and y of a place, uniform over the area."""
        image, row, col = self.corners[rng.integers(len(self.corners))]
        dx, dy = rng.integers(self.cell, size=2)
        return int(image), int(col) * self.cell + int(dx), int(row) * self.cell + int(dy)


class PatchSource:
    """Patches of one stain.

    Slides stay open; images without glass around the subject are opened for each patch, so that a folder of many is
    not held in memory. Memory bound: 12 bytes per (patch/8)² px of all images, and what the readers hold.
    """

    def __init__(self, files: Sequence[Path], settings: PatchSettings, *, stain: str, seed: int) -> None:
        self._files, self._settings = list(files), settings
        self._key = (seed, _STREAMS[stain])
        self._region = settings.source_region if stain == "source" else settings.target_region
        self._cell = max(1, settings.patch_px // _CELLS_PER_PATCH)
        self._views: list[SlideView | None] = []
        self._guide: SlideView | None = None
        self._mpps: list[float] = []
        self._area_px = 0.0
        kinds: list[list[NDArray[np.int32]]] = [[], [], []]
        for file in self._files:
            for kind, corners in zip(kinds, self._survey(file), strict=True):
                kind.append(corners)
        tissue, border, glass = (_Places(np.concatenate(kind), self._cell) for kind in kinds)
        if len(tissue.corners) == 0:
            where = self._files[0] if len(self._files) == 1 else f"the {len(self._files)} files of {stain}"
            raise InputError(f"{where}: no patch with enough tissue", f"lower --min-tissue ({settings.min_tissue})")
        # a kind that does not occur is replaced by tissue
        self._kinds = (tissue, border if len(border.corners) else tissue, glass if len(glass.corners) else tissue)
        if stain == "source" and settings.guide is not None:
            self._guide = self._lying_on(settings.guide)

    @property
    def mpp(self) -> float | None:
        """Mean µm per pixel of the patches, None where no image tells."""
        return sum(self._mpps) / len(self._mpps) if self._mpps else None

    @property
    def capacity(self) -> int:
        """How many patches fit side by side into the tissue; at least 1."""
        return max(1, round(self._area_px / self._settings.patch_px**2))

    def draw(self, number: int) -> Pixels:
        """Patch ``number``, (patch_px, patch_px, 3) uint8, contiguous; thread-safe."""
        return self.draw_guided(number)[0]

    def draw_guided(self, number: int) -> tuple[Pixels, Pixels | None]:
        """Patch ``number`` and what the guide shows of the same place, None without a guide; thread-safe."""
        settings = self._settings
        rng = np.random.default_rng([*self._key, number])
        u = rng.random()
        kind = (
            2
            if u < settings.background_fraction
            else 1
            if u < settings.background_fraction + settings.border_fraction
            else 0
        )
        image, x, y = self._kinds[kind].pick(rng)
        side = round(settings.patch_px * (1.0 + settings.scale * rng.uniform(-1.0, 1.0)))
        box = Box(x, y, side, side)
        layers = [resized(self._read(image, box), settings.patch_px)]
        if self._guide is not None:
            layers.append(resized(self._guide.read(_moved_inside(box, self._guide.size)), settings.patch_px))
        turned = oriented(np.concatenate(layers, axis=-1), rng, flip=settings.flip, rotate=settings.rotate)
        patch = np.ascontiguousarray(jittered(turned[..., :3], rng, amount=settings.jitter))
        return patch, np.ascontiguousarray(turned[..., 3:]) if self._guide is not None else None

    def close(self) -> None:
        """Close the slides."""
        for view in (*self._views, self._guide):
            if view is not None:
                view.slide.close()

    def _read(self, image: int, box: Box) -> Pixels:
        view = self._views[image]
        if view is not None:
            return view.read(_moved_inside(box, view.size))
        with open_slide(self._files[image]) as slide:
            view = self._view(slide)
            return view.read(_moved_inside(box, view.size))

    def _lying_on(self, guide: Path) -> SlideView:
        """The guide, which must have the pixels of the one source slide, seen as that is."""
        if len(self._files) > 1:
            raise UsageError(
                f"{guide}: a guide lies on one source slide, not on {len(self._files)}", "leave out --guide"
            )
        with open_slide(self._files[0]) as source:
            size, mpp = source.levels[0], source.mpp
        slide = open_slide(guide, mpp=mpp)
        if slide.levels[0] != size:
            slide.close()
            raise InputError(
                f"{guide}: {slide.levels[0]} px instead of the {size} px of the source", "a guide lies on the source"
            )
        return self._view(slide)

    def _view(self, slide: Slide) -> SlideView:
        return open_view(slide, mpp=self._settings.mpp if slide.mpp else None, region=self._region)

    def _survey(self, file: Path) -> tuple[NDArray[np.int32], ...]:
        """Candidate corners of a file: with tissue, at its border, on glass."""
        slide = open_slide(file)
        view = self._view(slide)
        side = self._settings.patch_px
        if min(view.size.width, view.size.height) < side:
            raise InputError(f"{file}: {view.size} px is smaller than a patch of {side} px", "lower --patch-size")
        if view.mpp is not None:
            self._mpps.append(view.mpp)
        mask = tissue_mask(view, "auto")
        fraction = mask.fraction(Grid(view.size, self._cell)).astype(np.float64)
        self._area_px += float(fraction.sum()) * self._cell**2
        number = len(self._views)
        if slide.expects_background:
            self._views.append(view)
        else:
            slide.close()
            self._views.append(None)
        return _corners(fraction, number, min_tissue=self._settings.min_tissue)


def _corners(fraction: NDArray[np.float64], image: int, *, min_tissue: float) -> tuple[NDArray[np.int32], ...]:
    """Cells of the lattice at which a patch of 8 × 8 cells has tissue, some tissue, or none: each (n, 3)."""
    span = min(_CELLS_PER_PATCH, *fraction.shape)
    sums = np.pad(fraction.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    total = sums[span:, span:] - sums[:-span, span:] - sums[span:, :-span] + sums[:-span, :-span]
    found = total / span**2
    none = found < 1e-6
    kinds = (found >= min_tissue, (found < min_tissue) & ~none, none & (found < min_tissue))
    places = [np.argwhere(kind).astype(np.int32) for kind in kinds]
    return tuple(np.concatenate([np.full((len(p), 1), image, np.int32), p], axis=1) for p in places)


def _moved_inside(box: Box, size: Size) -> Box:
    """The box moved so that it lies in the image, as far as it fits."""
    x = max(0, min(box.x, size.width - box.width))
    y = max(0, min(box.y, size.height - box.height))
    return Box(x, y, box.width, box.height)


# FROM training.pieces: What is evaluated while a run goes on: pieces of slides, given or held out of training.


@dataclass(frozen=True)
class Piece:
    """A part of a slide, in pixels at ``mpp`` (of level 0, where None)."""

    path: Path
    mpp: float | None
    region: Box


def find_pieces(settings: TrainSettings) -> list[Piece]:
    """What is translated, in the order of the files.

    Raises ``UsageError`` where nothing is held out that a patch fits into, ``InputError`` where there is no tissue.
    """
    choice, patches = settings.evaluation, settings.patches
    files = find_images(choice.slides) if choice.slides is not None else find_images(patches.source)[:1]
    pieces = []
    for file in files:
        with open_slide(file) as slide:
            mpp = patches.mpp if slide.mpp else None
            view = open_view(slide, mpp=mpp, region=choice.region)
            region = choice.region
            if region is None:
                kept_out = patches.source_region if choice.slides is None else None
                within = view.region if kept_out is None else largest_left_out(view.size, kept_out)
                region = _richest(view, within, patches.patch_px)
                view = open_view(slide, mpp=mpp, region=region)
            if not tissue_boxes(view, tissue_mask(view, "auto"), patches.patch_px):
                raise InputError(
                    f"{file}: no patch of the piece to evaluate is at least half tissue", "--evaluation-region"
                )
        pieces.append(Piece(file, mpp, region))
    return pieces


def largest_left_out(size: Size, region: Box) -> Box:
    """The largest rectangle of an image beside a region of it; empty where the region leaves nothing out."""
    return max(_strips(size, region), key=lambda strip: strip.width * strip.height)


def _strips(size: Size, region: Box) -> Iterator[Box]:
    yield Box(0, 0, size.width, region.y)
    yield Box(0, region.bottom, size.width, size.height - region.bottom)
    yield Box(0, 0, region.x, size.height)
    yield Box(region.right, 0, size.width - region.right, size.height)


def _richest(view: SlideView, within: Box, patch_px: int) -> Box:
    """The square of up to 8 × 8 whole patches inside ``within`` that holds the most tissue, the first of several."""
    rows, cols = min(_SIDE_PATCHES, within.height // patch_px), min(_SIDE_PATCHES, within.width // patch_px)
    if min(rows, cols) < 1:
        raise UsageError(
            f"{view.slide.path}: --source-region leaves no patch of {patch_px} px out to evaluate on",
            "--evaluation SLIDE, or --evaluation-region",
        )
    fraction = tissue_mask(view, "auto").fraction(Grid(view.size, patch_px)).astype(np.float64)
    top, left = -(-within.y // patch_px), -(-within.x // patch_px)
    bottom, right = max(within.bottom // patch_px, top + rows), max(within.right // patch_px, left + cols)
    fraction = np.pad(fraction, ((0, max(0, bottom - fraction.shape[0])), (0, max(0, right - fraction.shape[1]))))
    windows = np.lib.stride_tricks.sliding_window_view(fraction[top:bottom, left:right], (rows, cols))
    row, col = np.unravel_index(int(windows.sum((2, 3)).argmax()), windows.shape[:2])
    x, y = (left + int(col)) * patch_px, (top + int(row)) * patch_px
    # the grid may not fit a narrow strip: moved back inside, its first patch is no longer on a multiple
    return Box(
        min(x, within.right - cols * patch_px),
        min(y, within.bottom - rows * patch_px),
        cols * patch_px,
        rows * patch_px,
    )


# FROM training.augment: Variation of patches: orientation, size and colour, all drawn from a generator that the caller seeds.


def oriented(patch: Pixels, rng: np.random.Generator, *, flip: bool, rotate: bool) -> Pixels:
    """A square patch (H, W, 3), mirrored half of the time, turned by a multiple of 90°."""
    if flip and rng.random() < 0.5:
        patch = patch[:, ::-1]
    return np.rot90(patch, int(rng.integers(4))) if rotate else patch


def resized(patch: Pixels, side: int) -> Pixels:
    """A square patch at another size, antialiased."""
    if patch.shape[0] == side:
        return patch
    return np.asarray(Image.fromarray(patch).resize((side, side), Image.Resampling.BICUBIC))


def jittered(patch: Pixels, rng: np.random.Generator, *, amount: float) -> Pixels:
    """Optical density of each channel scaled by up to ``amount`` either way: another strength of staining."""
    if amount == 0:
        return patch
    gain = 1.0 + amount * rng.uniform(-1.0, 1.0, 3)
    levels = np.arange(256)[:, None] / 255.0
    table = np.round(255.0 * levels**gain).astype(np.uint8)  # 10^(-gain · OD) in grey levels
    return np.stack([table[patch[..., channel], channel] for channel in range(3)], axis=-1)


def recoloured(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] with the same structure in other colours, each its own: a contrastive view.

    Random gain and gamma of each channel and a random mixture with grey, from torch's CPU generator.
    """
    count = len(images)
    gain, gamma, mix = torch.rand(3, count, 3, 1, 1).to(images.device)
    unit = images.float() * 0.5 + 0.5
    varied = (0.6 + 0.4 * gain) * unit.clamp(1e-3, 1.0) ** (0.5 + gamma)
    blend = 0.8 * mix[:, :1]
    partial_tiles: Tensor = (1.0 - blend) * varied + blend * varied.mean(1, keepdim=True)
    return partial_tiles * 2.0 - 1.0
