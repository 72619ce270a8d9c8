"""From H&E and an aligned guide to a painted DAB stain: the target of a regression.

A guide is an image of the target stain in the frame of a source slide; black is unknown. It is aligned if it was made
from the source itself (``sharpen_guide.py``), so that the two agree pixel by pixel.
"""

from __future__ import annotations

import torch
from dab import DAB, EOSIN, HAEMATOXYLIN
from torch import Tensor
from torch.nn import functional as F

_STAINS = (HAEMATOXYLIN, EOSIN, DAB)  # DAB only makes the matrix square
_BLUE = (0.743, 0.610, 0.275)  # haematoxylin of a weak counterstain, unit length
_BROWN = (0.380, 0.570, 0.730)  # dense DAB, which absorbs more red than the textbooks' vector; unit length
_BACKGROUND = 243.0  # typical grey level of background in a scanned H&E slide
_WHITE = 251.0  # and in a scanned IHC slide
_UNKNOWN = -0.9  # a pixel of a guide is black if its brightest channel is below; DAB stays above
_DENSEST = 3.0  # natural optical density of the darkest DAB that is painted
_GRAIN_PX = 17  # side of the neighbourhood with whose eosin a pixel's is compared: about a cell at 20×


def stain_densities(source: Tensor) -> Tensor:
    """Haematoxylin and eosin of H&E patches (B, 3, H, W) in [-1, 1]: (B, 2, H, W) natural optical densities from 0."""
    stains = torch.tensor(_STAINS, device=source.device)
    unmix = torch.linalg.inv(stains / stains.norm(dim=1, keepdim=True))
    grey = ((source.float() * 0.5 + 0.5) * 255.0).clamp(1.0, 255.0)
    density = (-(grey / _BACKGROUND).log()).clamp(min=-0.05)
    return torch.einsum("bchw,ck->bkhw", density, unmix[:, :2]).clamp(min=0.0)


def haematoxylin_target(source: Tensor) -> Tensor:
    """H&E patches (B, 3, H, W) in [-1, 1] as a weak blue counterstain without any other dye; same shape and range.

    Haematoxylin above the density of dark nuclei is capped; its power of 1.3 and a trace of eosin leave cytoplasm pale.
    """
    haematoxylin, eosin = stain_densities(source).unbind(1)
    paint = 0.55 * haematoxylin.clamp(max=1.6) ** 1.3 + 0.06 * eosin
    blue = torch.tensor(_BLUE, device=source.device)[:, None, None]
    painted: Tensor = _WHITE * torch.exp(-paint[:, None] * blue) / 127.5 - 1.0
    return painted


def dab_densities(images: Tensor) -> Tensor:
    """DAB of images (B, 3, H, W) in [-1, 1]: (B, 1, H, W) natural optical densities from 0; differentiable."""
    haematoxylin, dab = (torch.tensor(stain, device=images.device) for stain in (HAEMATOXYLIN, DAB))
    stains = torch.stack([haematoxylin, dab, torch.linalg.cross(haematoxylin, dab)])
    unmix = torch.linalg.inv(stains / stains.norm(dim=1, keepdim=True))
    grey = ((images.float() * 0.5 + 0.5) * 255.0).clamp(min=1.0)
    density = -(grey / _WHITE).log()
    return torch.einsum("bchw,c->bhw", density, unmix[:, 1])[:, None].clamp(min=0.0)


def known(guide: Tensor) -> Tensor:
    """Mask (B, 1, H, W) of 0 and 1: where a guide (B, 3, H, W) in [-1, 1] is not black."""
    return (guide.amax(1, keepdim=True) > _UNKNOWN).float()


def aligned_target(source: Tensor, guide: Tensor) -> Tensor:
    """``haematoxylin_target`` with the DAB of an aligned guide over it; all three are (B, 3, H, W) in [-1, 1].

    Cytoplasm of even eosin takes up all of the DAB, denser cytoplasm more, nuclei 0.4 of it, and gaps none.
    """
    densities = stain_densities(source)
    haematoxylin, eosin = densities[:, :1], densities[:, 1:]
    around = F.avg_pool2d(eosin, _GRAIN_PX, stride=1, padding=_GRAIN_PX // 2, count_include_pad=False)
    grain = (0.6 + 0.4 * eosin / around.clamp(min=0.1)).clamp(0.5, 1.3)
    nucleus = ((haematoxylin - 0.75) / 0.5).clamp(0.0, 1.0)
    taken_up = ((haematoxylin + eosin) / 0.55).clamp(max=1.0) * grain * (1.0 - 0.6 * nucleus)
    density = (dab_densities(guide) * known(guide) * taken_up).clamp(max=_DENSEST)
    brown = torch.tensor(_BROWN, device=source.device)[:, None, None]
    painted: Tensor = (haematoxylin_target(source) + 1.0) * torch.exp(-density * brown) - 1.0
    return painted
