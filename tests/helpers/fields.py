"""Statistics that vary over a feature map, for the fused operations."""

from __future__ import annotations

import torch

from kin_cli.norm.fused import FieldAxis, Varying
from kin_cli.norm.lookup import Lookup

PATCH, HALO = 16, 8


def axis(features: int, patches: int) -> FieldAxis:
    taps = Lookup(PATCH, HALO, "bilinear").taps(features, patches)
    return FieldAxis(*(torch.from_numpy(values) for values in taps))


def varying(batch: int, channels: int, height: int, width: int, *, affine: bool) -> Varying:
    """Random cells around a window of 1 × 2 patches, with or without weight, bias and offset."""
    lookup = Lookup(PATCH, HALO, "bilinear")
    stats = torch.rand(batch, len(lookup.span(1)), len(lookup.span(2)), 2, channels) + 0.5
    parameters = torch.randn(3, channels) if affine else (None, None, None)
    return Varying(stats, axis(height, 1), axis(width, 2), *parameters)
