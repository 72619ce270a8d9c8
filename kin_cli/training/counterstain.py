"""What is known of a translation from H&E to a DAB stain beforehand: nuclei take the blue counterstain.

Without it a GAN tends to paint the darkest structures of one stain with the darkest colour of the other: nuclei brown.
A few hundred first steps of regression on colour deconvolution settle most of that (the warm start), and a penalty on
brown nuclei the rest; both are options, off by default, and neither says where else there is DAB: ``guide`` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kin_cli.metrics.dab import DAB, EOSIN, HAEMATOXYLIN

_STAINS = (HAEMATOXYLIN, EOSIN, DAB)  # DAB only completes the three
_BLUE = (0.743, 0.610, 0.275)  # haematoxylin of a weak counterstain, unit length
_GLASS = 243.0  # typical grey level of glass in a scanned H&E slide
WHITE = 251.0
"""And in a scanned IHC slide."""

_NUCLEUS = 0.9  # natural optical density of haematoxylin above which a pixel is taken for a nucleus
_MARGIN = 0.1


def stain_densities(source: Tensor) -> Tensor:
    """Haematoxylin and eosin of H&E patches (B, 3, H, W) in [-1, 1]: (B, 2, H, W) natural optical densities from 0."""
    stains = torch.tensor(_STAINS, device=source.device)
    unmix = torch.linalg.inv(stains / stains.norm(dim=1, keepdim=True))
    grey = ((source.float() * 0.5 + 0.5) * 255.0).clamp(1.0, 255.0)
    density = (-(grey / _GLASS).log()).clamp(min=-0.05)
    return torch.einsum("bchw,ck->bkhw", density, unmix[:, :2]).clamp(min=0.0)


def haematoxylin_target(source: Tensor) -> Tensor:
    """H&E patches (B, 3, H, W) in [-1, 1] as a weak blue counterstain without any other dye; same shape and range.

    Haematoxylin above the density of dark nuclei is capped; its power of 1.3 and a trace of eosin leave cytoplasm pale.
    """
    haematoxylin, eosin = stain_densities(source).unbind(1)
    paint = 0.55 * haematoxylin.clamp(max=1.6) ** 1.3 + 0.06 * eosin
    blue = torch.tensor(_BLUE, device=source.device)[:, None, None]
    painted: Tensor = WHITE * torch.exp(-paint[:, None] * blue) / 127.5 - 1.0
    return painted


def brown_nuclei(source: Tensor, made: Tensor) -> Tensor:
    """How far red exceeds blue in the translation of nuclei, mean over all pixels of (B, 3, H, W) in [-1, 1]; a scalar.

    For stains of cytoplasm and membrane only: a nuclear DAB stain is brown there.
    """
    nucleus = stain_densities(source)[:, 0] > _NUCLEUS
    excess = (made[:, 0].float() - made[:, 2].float() + _MARGIN).relu()
    return (nucleus * excess).mean()
