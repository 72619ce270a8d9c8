"""Where the brown of a DAB stain roughly belongs: a serial section of the source in that stain, registered to it.

A guide agrees with its source to some tens of µm, since the sections are neighbours and not the same. It is therefore
compared by how much DAB an area holds, never pixel by pixel, unless it was made from the source itself and is aligned
with it. Black is unknown.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kin_cli.metrics.dab import DAB, HAEMATOXYLIN
from kin_cli.training.counterstain import WHITE, haematoxylin_target, stain_densities

_AREA_PX = 64  # side of the areas whose DAB is compared: neighbouring sections agree to about that much at 20×
_UNKNOWN = -0.9  # brightest channel of a guide below which it is black; DAB stays above
_DENSEST = 3.0  # natural optical density of the darkest DAB that is painted
_BROWN = (0.380, 0.570, 0.730)  # dense DAB, which absorbs more red than the dye of textbooks; unit length
_TRACE = 0.12  # of DAB that unmixing finds in an area of counterstain alone
_GRAIN_PX = 17  # side of the areas whose eosin is compared with a pixel's: about a cell at 20×


def dab_densities(images: Tensor) -> Tensor:
    """DAB of images (B, 3, H, W) in [-1, 1]: (B, 1, H, W) natural optical densities from 0; differentiable."""
    haematoxylin, dab = (torch.tensor(stain, device=images.device) for stain in (HAEMATOXYLIN, DAB))
    stains = torch.stack([haematoxylin, dab, torch.linalg.cross(haematoxylin, dab)])
    unmix = torch.linalg.inv(stains / stains.norm(dim=1, keepdim=True))
    grey = ((images.float() * 0.5 + 0.5) * 255.0).clamp(min=1.0)
    density = -(grey / WHITE).log()
    return torch.einsum("bchw,c->bhw", density, unmix[:, 1])[:, None].clamp(min=0.0)


def known(guide: Tensor) -> Tensor:
    """Where a guide (B, 3, H, W) in [-1, 1] is not black: (B, 1, H, W) of 0 and 1."""
    return (guide.amax(1, keepdim=True) > _UNKNOWN).float()


def misplaced_brown(made: Tensor, guide: Tensor) -> Tensor:
    """Mean squared difference of the DAB of areas of 64 px, half overlapping, between translation and guide; a scalar.

    Both are (B, 3, H, W) in [-1, 1]; pixels that the guide does not know count in neither. Squared, because the best
    guess of an area of which half the likes are brown is then half as much brown, and not none.
    """
    mask = known(guide)
    found, wanted = (_by_area(dab_densities(images) * mask) for images in (made, guide))
    return (found - wanted).square().mean()


def stained_target(source: Tensor, guide: Tensor) -> Tensor:
    """``haematoxylin_target`` with the DAB of each area of the guide spread over the cytoplasm of that area."""
    mask = known(guide)
    densities = stain_densities(source)
    haematoxylin, eosin = densities[:, :1], densities[:, 1:]
    cytoplasm = ((haematoxylin + eosin) / 0.5).clamp(max=1.0) * (1.3 - haematoxylin).clamp(0.1, 1.0) * mask
    cytoplasm = cytoplasm.square()  # brown is dense where there is much of it, and absent in between
    size = source.shape[-2:]
    areas = (_by_area(dab_densities(guide) * mask) - _TRACE).clamp(min=0.0) / _by_area(cytoplasm).clamp(min=0.15)
    spread = F.interpolate(areas, size=size, mode="bilinear", align_corners=True)
    return _with_brown(source, spread * cytoplasm)


def aligned_target(source: Tensor, guide: Tensor) -> Tensor:
    """``haematoxylin_target`` with the DAB of an aligned guide, pixel by pixel, as cytoplasm takes it up.

    That is all of it in cytoplasm of even eosin, more where eosin is denser than around it, 0.4 of it over nuclei, and
    none in gaps. (B, 3, H, W) in [-1, 1] all three.
    """
    densities = stain_densities(source)
    haematoxylin, eosin = densities[:, :1], densities[:, 1:]
    around = F.avg_pool2d(eosin, _GRAIN_PX, stride=1, padding=_GRAIN_PX // 2, count_include_pad=False)
    grain = (0.6 + 0.4 * eosin / around.clamp(min=0.1)).clamp(0.5, 1.3)
    nucleus = ((haematoxylin - 0.75) / 0.5).clamp(0.0, 1.0)
    taken_up = ((haematoxylin + eosin) / 0.55).clamp(max=1.0) * grain * (1.0 - 0.6 * nucleus)
    return _with_brown(source, dab_densities(guide) * known(guide) * taken_up)


def _with_brown(source: Tensor, density: Tensor) -> Tensor:
    """``haematoxylin_target`` with DAB of natural optical densities (B, 1, H, W) over it."""
    brown = torch.tensor(_BROWN, device=source.device)[:, None, None]
    painted: Tensor = (haematoxylin_target(source) + 1.0) * torch.exp(-density.clamp(max=_DENSEST) * brown) - 1.0
    return painted


def _by_area(values: Tensor) -> Tensor:
    """Means of (B, 1, H, W) over areas of 64 px, half overlapping; of what there is of them at the edges."""
    half = _AREA_PX // 2
    return F.avg_pool2d(values, _AREA_PX, stride=half, padding=half, count_include_pad=False)
