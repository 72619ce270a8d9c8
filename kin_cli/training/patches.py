"""Patches of one stain, drawn at random places of slides and images; nothing is cropped beforehand.

The patch of a number depends on the seed and that number alone, so that neither threads nor an interruption change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import Box, Grid, Size
from kin_cli.slide.opening import open_slide
from kin_cli.slide.source import Pixels, Slide
from kin_cli.slide.tissue import all_tissue, detect_tissue
from kin_cli.slide.view import SlideView, open_view
from kin_cli.training.augment import jittered, oriented, resized
from kin_cli.training.settings import PatchSettings

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
        kind = 2 if u < settings.glass_share else 1 if u < settings.glass_share + settings.border_share else 0
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
        mask = detect_tissue(view) if slide.has_glass_by_default else all_tissue(view.size)
        share = mask.share(Grid(view.size, self._cell)).astype(np.float64)
        self._area_px += float(share.sum()) * self._cell**2
        number = len(self._views)
        if slide.has_glass_by_default:
            self._views.append(view)
        else:
            slide.close()
            self._views.append(None)
        return _corners(share, number, min_tissue=self._settings.min_tissue)


def _corners(share: NDArray[np.float64], image: int, *, min_tissue: float) -> tuple[NDArray[np.int32], ...]:
    """Cells of the lattice at which a patch of 8 × 8 cells has tissue, some tissue, or none: each (n, 3)."""
    span = min(_CELLS_PER_PATCH, *share.shape)
    sums = np.pad(share.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
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
