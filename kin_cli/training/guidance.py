"""Losses that every framework can add: agreement with a registered section; background and pigment stay as they are.

A guide is a section in the target stain that was registered to the source slide (``kin register``): the same place, but
other cells, and some µm off. So only means over cells of some µm are compared, at the shift that fits a patch best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kin_cli.training.settings import GuidanceSettings

_DARKEST = 0.03  # of full brightness: densities above its logarithm are noise
_UNKNOWN = -0.95  # a pixel of a guide is black if its brightest channel is below
_BACKGROUND = 0.72  # in [-1, 1]: a place is background if its darkest channel, averaged over the grain, is as bright
_GRAIN_PX = 8
_COLOUR_PX = 4  # side of the cells of which colours are compared: smaller than a nucleus
_DIRECTIONS = 8
_PIGMENT_PX = 5  # side of the neighbourhood whose mean colour tells pigment from noise of chroma
_PIGMENT_RATIO = 0.8  # absorption of blue by that of green: haematoxylin has 0.41, eosin 0.11 (Ruifrok & Johnston 2001)
_PIGMENT_DENSITY = 0.28  # mean natural optical density; below it a ratio is noise
_KEPT = 0.9
_FEWEST = 64  # cells: fewer tell nothing of a distribution
_ALL_BACKGROUND = 0.95  # dust is background too, where so much of its neighbourhood is
_AROUND_CELLS = 7  # side, in cells, of the neighbourhood in which a gap of one section only counts as torn
_TORN = 0.5  # difference of its fractions of background


@dataclass(frozen=True)
class Guidance:
    """The terms that the settings ask for, of a batch and its translation."""

    settings: GuidanceSettings

    def terms(self, source: Tensor, fake: Tensor, guide: Tensor | None) -> dict[str, Tensor]:
        """Weighted terms by name; ``source`` and ``fake`` are (B, 3, H, W) in [-1, 1], ``guide`` as drawn, or None."""
        settings, fake, terms = self.settings, fake.float(), {}
        if guide is not None:
            place, colours = guide_distances(source, fake, guide, cell=settings.cell_px)
            terms["guide"] = settings.weight * place
            terms["colours"] = settings.colours * colours
        if settings.background > 0:
            terms["background"] = settings.background * background_distance(source, fake)
        if settings.pigment > 0:
            terms["pigment"] = settings.pigment * pigment_distance(source, fake)
        return terms


def density(images: Tensor) -> Tensor:
    """Natural optical density of each channel of images in [-1, 1], relative to white; same shape, from 0 to 3.5."""
    return -(images.float() * 0.5 + 0.5).clamp(_DARKEST, 1.0).log()


def background(images: Tensor) -> Tensor:
    """Mask (B, 1, H, W) of 0 and 1: where images (B, 3, H, W) in [-1, 1] show background, also under specks of dust."""
    darkest = F.avg_pool2d(images.float().amin(1, keepdim=True), _GRAIN_PX)
    bright = (darkest >= _BACKGROUND).float()
    around = _around(bright)
    found = torch.maximum(bright, (around > _ALL_BACKGROUND).float())
    return _enlarged(found, images)


def background_distance(source: Tensor, fake: Tensor) -> Tensor:
    """L1 on the background of the source between the translation and the source without its grain; a scalar.

    It is the mean over all pixels of the patches, so that patches without background count as 0.
    """
    mask = background(source)
    smooth = _enlarged(F.avg_pool2d(source.float(), _GRAIN_PX), source)
    return ((fake - smooth).abs() * mask).mean()


def pigment(images: Tensor) -> Tensor:
    """Mask (B, 1, H, W) of 0 and 1: where H&E images (B, 3, H, W) in [-1, 1] show brown or black that no dye made.

    Neither haematoxylin nor eosin absorbs blue as much as green; melanin, lipofuscin, haemosiderin, carbon and ink do.
    """
    around = F.avg_pool2d(density(images), _PIGMENT_PX, stride=1, padding=_PIGMENT_PX // 2, count_include_pad=False)
    dense = around.mean(1, keepdim=True) > _PIGMENT_DENSITY
    return (dense & (around[:, 2:] > _PIGMENT_RATIO * around[:, 1:2])).float()


def pigment_distance(source: Tensor, fake: Tensor) -> Tensor:
    """L1 on the pigment of the source between the source and its translation: mean over all pixels; a scalar."""
    return ((fake - source.float()).abs() * pigment(source)).mean()


def guide_distances(source: Tensor, fake: Tensor, guide: Tensor, *, cell: int) -> tuple[Tensor, Tensor]:
    """How far a translation is from its guide, place by place and in its colours: two scalars.

    ``source`` and ``fake`` are (B, 3, H, W) in [-1, 1]; ``guide`` is (B, 3, H + 2m, W + 2m) about the same centre,
    black where unknown. Each patch is compared at the shift of up to ±m px, in steps of half a cell, at which its
    structure fits best, and counts by the correlation found there: 0 where the sections differ. What is unknown does
    not count, nor what is torn in one section only.

    The first is the L1 between mean optical densities in cells of ``cell`` px that overlap by half. The second is the
    distance of two sets of colours, wherever in the patch they are: the mean L1 between quantiles of the densities'
    projections onto the channels and onto random directions (sliced Wasserstein distance), in cells of 4 px.
    """
    known = (guide.amax(1, keepdim=True) > _UNKNOWN).float()
    weights = _pooled(known, cell)
    ours = _pooled(density(fake), cell)
    dense = density(guide) * known
    theirs = _pooled(dense, cell) / weights.clamp(min=1e-3)  # averages over known pixels
    structure = _pooled(density(source), cell).mean(1), ours.detach().mean(1)
    our_background, their_background = _pooled(background(source), cell), _pooled(background(guide), cell)
    height, width = ours.shape[2:]
    places, colours = [], []
    for b in range(len(fake)):
        one = slice(b, b + 1)
        row, col, trust = _best_shift([values[b] for values in structure], theirs[b].mean(0), weights[b, 0])
        at = (one, slice(None), slice(row, row + height), slice(col, col + width))
        torn = (_around(our_background[one]) - _around(their_background[at])).abs() > _TORN
        weight = weights[at] * (~torn)
        places.append(trust * ((ours[one] - theirs[at]).abs() * weight).mean())
        top, left = row * cell // 2, col * cell // 2
        window = (one, slice(None), slice(top, top + fake.shape[2]), slice(left, left + fake.shape[3]))
        colours.append(
            trust * _colour_distance(density(fake[one]), dense[window], _spread(weight, fake) * known[window])
        )
    return torch.stack(places).mean(), torch.stack(colours).mean()


def _colour_distance(ours: Tensor, theirs: Tensor, weight: Tensor) -> Tensor:
    """Sliced Wasserstein distance of densities (1, 3, H, W), where the weight (1, 1, H, W) is almost 1; a scalar."""
    kept = F.avg_pool2d(weight, _COLOUR_PX).flatten() > _KEPT
    if int(kept.sum()) < _FEWEST:
        return ours.sum() * 0.0
    first, second = (F.avg_pool2d(values, _COLOUR_PX).flatten(2)[0, :, kept] for values in (ours, theirs))  # (3, n)
    directions = torch.cat([torch.eye(3), F.normalize(torch.randn(_DIRECTIONS, 3), dim=1)]).to(ours.device)
    sorted_pairs = [(directions @ values).sort(dim=1).values for values in (first, second)]
    return (sorted_pairs[0] - sorted_pairs[1]).abs().mean()


def _spread(cells: Tensor, images: Tensor) -> Tensor:
    """Values of overlapping cells (1, 1, h, w), at the pixels of images."""
    return F.interpolate(cells, size=images.shape[2:], mode="bilinear", align_corners=False)


def _best_shift(ours: Sequence[Tensor], theirs: Tensor, weights: Tensor) -> tuple[int, int, float]:
    """Row and column at which maps (h, w) correlate best with one of (H, W), and the mean correlation, from 0 to 1.

    ``weights`` are those of the cells of (H, W). Shifts at which less than half is known are left out.
    """
    height, width = ours[0].shape
    cols = theirs.shape[1] - width + 1

    def windows(values: Tensor) -> Tensor:  # (shifts, cells)
        return F.unfold(values[None, None], (height, width))[0].T

    there, weight = windows(theirs), windows(weights)
    total = weight.sum(1, keepdim=True).clamp(min=1e-3)
    centred = there - (there * weight).sum(1, keepdim=True) / total
    variance = (centred**2 * weight).sum(1)
    scores = torch.zeros(len(there), device=theirs.device)
    for values in ours:
        here = values.flatten()[None]
        apart = here - (here * weight).sum(1, keepdim=True) / total
        shared = (apart * centred * weight).sum(1)
        scores += shared / (variance * (apart**2 * weight).sum(1)).clamp(min=1e-6).sqrt() / len(ours)
    scores[total[:, 0] < 0.5 * height * width] = 0.0
    best = int(scores.argmax())
    return best // cols, best % cols, float(scores[best].clamp(0.0, 1.0))


def _pooled(values: Tensor, cell: int) -> Tensor:
    return F.avg_pool2d(values, cell, stride=cell // 2)


def _around(cells: Tensor) -> Tensor:
    return F.avg_pool2d(cells, _AROUND_CELLS, stride=1, padding=_AROUND_CELLS // 2, count_include_pad=False)


def _enlarged(cells: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(cells, size=images.shape[2:], mode="nearest")
