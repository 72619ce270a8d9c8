"""What a patched network does with a halo: residual blocks use it up, and the core stays what it was."""

from __future__ import annotations

import copy

import pytest
import torch

from kin_cli.models.architectures import Spec, build, halo_px
from kin_cli.models.exchange import exchange_norms
from kin_cli.models.resnet import ResnetSpec, UrustSpec
from kin_cli.models.unet import UnetSpec
from kin_cli.norm.layer import Field
from kin_cli.norm.lookup import Lookup

PATCH = 32
SPECS: list[Spec] = [
    ResnetSpec(width=2, blocks=3, antialias_down=True, antialias_up=True),
    ResnetSpec(width=2, blocks=2, affine=True, dropout=True),
    UrustSpec(width=2, blocks=3),
    UnetSpec(width=2, downs=5),
]


def _halo(spec: Spec) -> int:
    return -(-halo_px(spec) // spec.stride) * spec.stride


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.architecture}-{getattr(spec, 'blocks', 0)}")
@pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "varying"])
def test_a_halo_that_is_used_up_leaves_the_core_as_it_was(spec: Spec, uniform: bool) -> None:
    torch.manual_seed(0)
    module, halo = build(spec).double(), _halo(spec)
    lookup = Lookup(PATCH, halo, "bilinear")
    rows, cols = (len(lookup.span(patches)) for patches in (2, 3))
    kept = exchange_norms(copy.deepcopy(module), side=64)
    cells = torch.rand(1, *((1, 1) if uniform else (rows, cols)), 2, kept.channels)
    field = Field(cells.clamp(min=0.2), lookup, (2, 3))
    x = torch.rand(1, 3, 2 * PATCH + 2 * halo, 3 * PATCH + 2 * halo, dtype=torch.float64) * 2 - 1
    whole, shrunk = kept.apply(x, field), exchange_norms(module, side=64, reach_px=halo_px(spec)).apply(x, field)
    lost = 2 * spec.stride * getattr(spec, "blocks", 0)  # two convolutions a block, one feature each
    assert [a - b for a, b in zip(whole.shape[2:], shrunk.shape[2:], strict=True)] == [2 * lost, 2 * lost]
    inner = slice(halo - lost, lost - halo or None)
    core = whole[:, :, halo:-halo, halo:-halo]
    torch.testing.assert_close(shrunk[:, :, inner, inner], core, atol=1e-5, rtol=0)
    assert core.std() > 0.01


def test_a_halo_smaller_than_the_receptive_field_is_kept() -> None:
    spec = SPECS[0]
    lookup = Lookup(PATCH, _halo(spec) - 4, "bilinear")
    network = exchange_norms(build(spec), side=64, reach_px=halo_px(spec))
    cells = torch.ones(1, len(lookup.span(1)), len(lookup.span(1)), 2, network.channels)
    x = torch.zeros(1, 3, PATCH + 2 * lookup.halo_px, PATCH + 2 * lookup.halo_px)
    assert network.apply(x, Field(cells, lookup, (1, 1))).shape == x.shape
