"""Random patches of one stain, read straight from slides; their augmentation, and their form as tensors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import Box, Doubles, Grid, Pixels, Size
from kin_cli.slide.base import Slide
from kin_cli.slide.open import open_slide
from kin_cli.slide.stain import jittered_stains
from kin_cli.slide.tissue import tissue_mask, window_means
from kin_cli.slide.view import SlideView, open_view
from kin_cli.training.settings import PatchSettings

_CELLS_PER_PATCH = 8  # side of a patch on the lattice of candidate corners
_STREAMS = {"source": 0, "target": 1}

_Corners: TypeAlias = "NDArray[np.int32]"  # (n, 3): image, row and column on the lattice


@dataclass(frozen=True)
class _Places:
    """Candidate patches of one kind, by their corners on a lattice of ``cell`` px."""

    corners: _Corners
    cell: int

    def pick(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """Image, x and y of a random patch, uniform over the area of the kind."""
        image, row, col = self.corners[rng.integers(len(self.corners))]
        dx, dy = rng.integers(self.cell, size=2)
        return int(image), int(col) * self.cell + int(dx), int(row) * self.cell + int(dy)


class _Pictures:
    """Slides and images, open or opened for every read (see ``PatchSource``), cropped to ``region``.

    ``sizes`` are those of the views, as far as they were opened.
    """

    def __init__(self, files: Sequence[Path], settings: PatchSettings, *, region: Box | None) -> None:
        self._files, self._settings, self._region = list(files), settings, region
        self._views: list[SlideView | None] = []
        self.sizes: list[Size] = []

    def open(self, mpp: float | None = None) -> SlideView:
        """Open the next file. ``mpp`` replaces the file's own µm per pixel."""
        slide = open_slide(self._files[len(self._views)], mpp=mpp)
        view = self._view(slide)
        self._views.append(view)
        self.sizes.append(view.size)
        return view

    @property
    def last(self) -> SlideView:
        """The view that was opened last and not released."""
        view = self._views[-1]
        assert view is not None
        return view

    def release(self) -> None:
        """Close the file that was opened last, unless slides like it stay open."""
        if not self.last.slide.expects_background:
            self.last.slide.close()
            self._views[-1] = None

    def read(self, number: int, box: Box) -> Pixels:
        """Pixels of a box; thread-safe."""
        view = self._views[number]
        if view is not None:
            return view.read(box)
        with open_slide(self._files[number]) as slide:
            return self._view(slide).read(box)

    def close(self) -> None:
        """Close the slides."""
        for view in self._views:
            if view is not None:
                view.slide.close()

    def _view(self, slide: Slide) -> SlideView:
        return open_view(slide, mpp=self._settings.mpp if slide.mpp else None, region=self._region)


class PatchSource:
    """Random patches of one stain, read straight from slides and images.

    A patch is determined by seed, stain and number alone; threads and interruptions do not change it. Slides stay open;
    images that show no background around the tissue are opened for every patch, so that a large folder does not fill
    the memory. ``guides`` are one image per file, in its frame. Memory bound: 12 bytes per (patch/8)² px of all images,
    and what the readers hold.

    Raises:
        InputError: An image is smaller than a patch, no patch has enough tissue, or a guide is in another frame.
        UsageError: There are guides, but not one for each file.
    """

    def __init__(
        self, files: Sequence[Path], settings: PatchSettings, *, stain: str, seed: int, guides: Sequence[Path] = ()
    ) -> None:
        if guides and len(guides) != len(files):
            raise UsageError(
                f"--guide names {len(guides)} files for {len(files)} of --source",
                "give one for each, in the order of their names",
            )
        self._files, self._settings, self._stain = list(files), settings, stain
        self._key = (seed, _STREAMS[stain])
        region = settings.source_region if stain == "source" else settings.target_region
        self._cell = max(1, settings.patch_px // _CELLS_PER_PATCH)
        self._pictures = _Pictures(files, settings, region=region)
        self._guides = _Pictures(guides, settings, region=region) if guides else None
        self._mpps: list[float] = []
        self._area_px = 0.0
        kinds: list[list[_Corners]] = [[], [], []]
        for number, file in enumerate(self._files):
            for kind, corners in zip(kinds, self._survey(number, file), strict=True):
                kind.append(corners)
            if self._guides is not None:
                self._open_guide(self._guides, guides[number])
            self._pictures.release()
        tissue, border, background = (_Places(np.concatenate(kind), self._cell) for kind in kinds)
        if len(tissue.corners) == 0:
            where = self._files[0] if len(self._files) == 1 else f"the {len(self._files)} files of {stain}"
            raise InputError(f"{where}: no patch with enough tissue", f"lower --min-tissue ({settings.min_tissue})")
        # tissue replaces a kind that does not occur
        self._kinds = tuple(kind if len(kind.corners) else tissue for kind in (tissue, border, background))

    @property
    def mpp(self) -> float | None:
        """Mean µm per pixel of the patches, None if no image states it."""
        return sum(self._mpps) / len(self._mpps) if self._mpps else None

    @property
    def capacity(self) -> int:
        """Number of patches that fit side by side into the tissue; at least 1."""
        return max(1, round(self._area_px / self._settings.patch_px**2))

    def draw(self, number: int) -> Pixels:
        """Patch ``number``, (patch_px, patch_px, 3) uint8, contiguous; thread-safe."""
        return self.draw_guided(number)[0]

    def draw_guided(self, number: int) -> tuple[Pixels, Pixels | None]:
        """Patch ``number``, and its guide with ``guide_shift_px`` around it, black where unknown; None without guides.

        Both are turned alike; only the patch is jittered. Thread-safe.
        """
        settings = self._settings
        rng = np.random.default_rng([*self._key, number])
        places = self._kind(rng.random())
        image, x, y = places.pick(rng)
        side = round(settings.patch_px * (1.0 + settings.scale * rng.uniform(-1.0, 1.0)))
        box = _moved_inside(Box(x, y, side, side), self._pictures.sizes[image])
        patch = resized(self._pictures.read(image, box), settings.patch_px)
        guide = None
        if self._guides is not None:
            pixels = self._guide_around(self._guides, image, box)
            same = copy.deepcopy(rng)
            guide = np.ascontiguousarray(oriented(pixels, same, flip=settings.flip, rotate=settings.rotate))
        turned = oriented(patch, rng, flip=settings.flip, rotate=settings.rotate)
        patch = jittered(turned, rng, amount=settings.jitter)
        if self._stain == "source":  # the target's colours are what is to be learned
            patch = jittered(patch, rng, amount=settings.source_jitter)
            patch = jittered_stains(patch, rng, amount=settings.stain_jitter)
        return np.ascontiguousarray(patch), guide

    def close(self) -> None:
        """Close the slides."""
        self._pictures.close()
        if self._guides is not None:
            self._guides.close()

    def _kind(self, u: float) -> _Places:
        """The kind of place for a random number ``u`` in [0, 1)."""
        tissue, border, background = self._kinds
        if u < self._settings.background_fraction:
            return background
        return border if u < self._settings.background_fraction + self._settings.border_fraction else tissue

    def _guide_around(self, guides: _Pictures, image: int, box: Box) -> Pixels:
        """The guide of a box and of a margin around it, black beyond the picture."""
        margin, size = self._settings.guide_shift_px, guides.sizes[image]
        wide = round(margin * box.width / self._settings.patch_px)
        around = Box(box.x - wide, box.y - wide, box.width + 2 * wide, box.height + 2 * wide)
        inside = around.clipped(size)
        pixels = np.zeros((around.height, around.width, 3), np.uint8)
        rows = slice(inside.y - around.y, inside.bottom - around.y)
        cols = slice(inside.x - around.x, inside.right - around.x)
        pixels[rows, cols] = guides.read(image, inside)
        return resized(pixels, self._settings.patch_px + 2 * margin)

    def _open_guide(self, guides: _Pictures, file: Path) -> None:
        """Open the next guide. Raises ``InputError`` unless it has the size of its source slide."""
        source = self._pictures.last
        guide = guides.open(mpp=source.slide.mpp)
        if guide.slide.levels[0] != source.slide.levels[0]:
            raise InputError(
                f"{file}: has {guide.slide.levels[0]} px, and {source.slide.path} has {source.slide.levels[0]}",
                "a guide must be in the frame of its source slide, as kin register writes it",
            )
        guides.release()

    def _survey(self, number: int, file: Path) -> tuple[_Corners, ...]:
        """Candidate corners of a file, (n, 3) each: enough tissue, less tissue, background only. It stays open."""
        view = self._pictures.open()
        side = self._settings.patch_px
        if min(view.size.width, view.size.height) < side:
            raise InputError(f"{file}: {view.size} px is smaller than a patch of {side} px", "lower --patch-size")
        if view.mpp is not None:
            self._mpps.append(view.mpp)
        mask = tissue_mask(view, "auto")
        fraction = mask.fraction(Grid(view.size, self._cell)).astype(np.float64)
        self._area_px += float(fraction.sum()) * self._cell**2
        return _corners(fraction, number, min_tissue=self._settings.min_tissue)


def _corners(fraction: Doubles, image: int, *, min_tissue: float) -> tuple[_Corners, ...]:
    """Cells of the lattice at which a patch of 8 × 8 cells has enough tissue, less, or none: each (n, 3)."""
    found = window_means(fraction, _CELLS_PER_PATCH)
    none = found < 1e-6
    kinds = (found >= min_tissue, (found < min_tissue) & ~none, none & (found < min_tissue))
    places = [np.argwhere(kind).astype(np.int32) for kind in kinds]
    return tuple(np.concatenate([np.full((len(p), 1), image, np.int32), p], axis=1) for p in places)


def _moved_inside(box: Box, size: Size) -> Box:
    """The box moved inside an image of ``size``, as far as it fits."""
    x = max(0, min(box.x, size.width - box.width))
    y = max(0, min(box.y, size.height - box.height))
    return Box(x, y, box.width, box.height)


def oriented(patch: Pixels, rng: np.random.Generator, *, flip: bool, rotate: bool) -> Pixels:
    """A square patch (H, W, 3): ``flip`` mirrors it half of the time, ``rotate`` turns it by a multiple of 90°."""
    if flip and rng.random() < 0.5:
        patch = patch[:, ::-1]
    return np.rot90(patch, int(rng.integers(4))) if rotate else patch


def resized(patch: Pixels, side: int) -> Pixels:
    """A square patch (H, W, 3) resampled to ``side`` px, antialiased."""
    if patch.shape[0] == side:
        return patch
    return np.asarray(Image.fromarray(patch).resize((side, side), Image.Resampling.BICUBIC))


def jittered(patch: Pixels, rng: np.random.Generator, *, amount: float) -> Pixels:
    """Scale the optical density of each channel by a random factor in 1 ± ``amount``: stronger or weaker staining."""
    if amount == 0:
        return patch
    gain = 1.0 + amount * rng.uniform(-1.0, 1.0, 3)
    levels = np.arange(256)[:, None] / 255.0
    table = np.round(255.0 * levels**gain).astype(np.uint8)  # 255 · 10^(-gain · OD)
    return np.stack([table[patch[..., channel], channel] for channel in range(3)], axis=-1)


def to_tensor(patches: Sequence[Pixels], device: torch.device | str = "cpu") -> Tensor:
    """Patches (H, W, 3) uint8 of one size as a batch (B, 3, H, W) float32 in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(patches)).to(device)
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_pixels(images: Tensor) -> Pixels:
    """A batch (B, 3, H, W) in [-1, 1] as (B, H, W, 3) uint8, rounded."""
    levels = (images.float().clamp(-1.0, 1.0) * 127.5 + 127.5).round()
    pixels: Pixels = levels.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    return pixels
