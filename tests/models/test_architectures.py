"""The halo against values known from the papers' architectures and against the gradient of a real forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from kin_cli.errors import ModelError, UsageError
from kin_cli.models.architectures import Spec, build, halo_px, layer_blocks, measured_radius_px
from kin_cli.models.checkpoint import load_generator
from kin_cli.models.exchange import exchange_norms
from kin_cli.models.resnet import Norm, ResnetSpec, UrustSpec
from kin_cli.models.unet import FlatUnetSpec, UnetSpec
from kin_cli.plan import make_plan
from kin_cli.translation import translate
from tests.helpers.networks_published import (
    BATCH,
    TRACKED,
    FlatUnet,
    NamedResnet,
    hooked_kin,
    no_norm,
    patchwise,
    resnet,
    trained,
    translated,
    unet,
)
from tests.helpers.progress import Watcher
from tests.helpers.translations import command_settings

PictureArray = np.ndarray[Any, Any]
ANTIALIASED = {"antialias_down": True, "antialias_up": True}


@pytest.mark.parametrize(
    ("spec", "radius"), [(ResnetSpec(64, 9, **ANTIALIASED), 93), (ResnetSpec(64, 6, **ANTIALIASED), 69)]
)
def test_known_radii(spec: Spec, radius: int) -> None:
    assert halo_px(spec) == radius


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(
    "spec", [ResnetSpec(2), ResnetSpec(2, antialias_down=True), ResnetSpec(2, antialias_up=True), UrustSpec(2)]
)
def test_radius_is_where_the_gradient_ends(spec: Spec, blocks: int) -> None:
    spec = type(spec)(**{**vars(spec), "blocks": blocks})
    network = build(spec).double().eval()
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.InstanceNorm2d | nn.ReLU):
            network.get_submodule(name.rpartition(".")[0]).register_module(name.rpartition(".")[2], nn.Identity())
    x = torch.randn(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    distances = []
    for phase in range(4):
        y = network(x)[0, 0, 64 + phase, 64 + phase]
        (gradient,) = torch.autograd.grad(y, x)
        touched = gradient[0].abs().sum(dim=0).nonzero()
        distances.append(int((touched - 64 - phase).abs().max()))
    assert halo_px(spec) == max(distances)


def test_closed_form_of_the_unet_is_what_is_measured() -> None:
    with torch.device("meta"):
        network = build(UnetSpec(1, 5, in_channels=1, out_channels=1))
        flat = build(FlatUnetSpec(1, 5, in_channels=1, out_channels=1))
    assert halo_px(UnetSpec(64, 5)) == measured_radius_px(network, stride=32, in_channels=1) == 93
    assert 93 <= measured_radius_px(flat, stride=32, in_channels=1) <= halo_px(FlatUnetSpec(64, 5)) == 96


@pytest.mark.parametrize(("layers", "radius"), [([nn.Conv2d(3, 3, 7, padding=3)], 3), ([nn.Identity()], 0)])
def test_radius_of_simple_networks(layers: list[nn.Module], radius: int) -> None:
    assert measured_radius_px(nn.Sequential(*layers), stride=1) == radius


def test_measuring_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.InstanceNorm2d(3))
    before = network[0].weight.clone()
    measured_radius_px(network, stride=1)
    assert isinstance(network[1], nn.InstanceNorm2d)
    assert torch.equal(network[0].weight, before)


def test_unbounded_receptive_field_is_an_error() -> None:
    class Everywhere(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x.mean()

    with pytest.raises(ValueError, match="wider than"):
        measured_radius_px(Everywhere(), stride=1)


SPECS: list[tuple[Spec, list[str], int]] = [
    (ResnetSpec(width=4, blocks=3), ["conv", "down 1", "down 2", "residual", "up 1", "up 2"], 64),
    (
        ResnetSpec(width=4, blocks=2, antialias_down=True, antialias_up=True, dropout=True),
        ["conv", "down 1", "down 2", "residual", "up 1", "up 2"],
        64,
    ),
    (UrustSpec(width=4, blocks=2), ["conv", "down 1", "down 2", "residual", "up 1", "up 2"], 64),
    (UnetSpec(width=2, downs=5), [*(f"down {n}" for n in (1, 2, 3)), *(f"up {n}" for n in (1, 2, 3, 4))], 64),
    (UnetSpec(width=2, downs=7), [*(f"down {n}" for n in range(1, 6)), *(f"up {n}" for n in range(1, 7))], 256),
]


@pytest.mark.parametrize(("spec", "names", "side"), SPECS, ids=lambda value: getattr(value, "architecture", ""))
def test_layer_blocks_are_those_of_the_layout(spec: Spec, names: list[str], side: int) -> None:
    """Told from the size of the feature maps: it falls along the downs, stays in the residuals, grows along the ups."""
    torch.manual_seed(0)
    module = build(spec)
    sides: list[int] = []
    for layer in module.modules():
        if isinstance(layer, nn.InstanceNorm2d):
            layer.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    with torch.inference_mode():
        module(torch.zeros(1, 3, side, side))
    network = exchange_norms(module, side=side)
    blocks = layer_blocks(network.layers)
    assert [block.name for block in blocks] == names
    ends = [0] + [block.channels.stop for block in blocks]
    assert [block.channels.start for block in blocks] == ends[:-1]
    assert ends[-1] == network.channels
    assert sum(block.layers for block in blocks) == len(network.layers)
    by_block = [sides.pop(0) for block in blocks for _ in range(block.layers)]
    place = 0
    previous = side + 1
    for block in blocks:
        here = by_block[place]
        assert set(by_block[place : place + block.layers]) == {here}
        if block.name.startswith("up"):
            assert here >= previous
        else:
            assert here <= previous
        previous, place = here, place + block.layers


FAMILIES: dict[str, tuple[Callable[[], nn.Module], dict[str, object]]] = {
    "plain": (resnet, {}),
    "zero padding": (partial(resnet, padding="zero"), {"padding": "zeros"}),
    "zero padding and dropout": (
        partial(resnet, padding="zero", dropout=True),
        {"padding": "zeros", "dropout": True},
    ),
    "3 halvings, as pix2pixHD": (partial(resnet, halvings=3), {"halvings": 3}),
    "4 halvings, as pix2pixHD and PPT": (partial(resnet, width=2, blocks=3, halvings=4), {"halvings": 4}),
    "PyTorch-GAN's pix2pix": (FlatUnet, {"downs": 5, "width": 2}),
    "resize-convolution, as DeepLIIF": (partial(resnet, up="resize_conv"), {"resize": "reflect"}),
    "PyTorch-GAN's CycleGAN": (partial(resnet, up="upsample", inside="block"), {"resize": "zeros"}),
    "other names": (NamedResnet, {}),
    "tracked InstanceNorm": (partial(resnet, norm=TRACKED), {}),
    "BatchNorm": (partial(resnet, norm=BATCH, bias=False), {"norm": "batch", "affine": True, "bias": False}),
    "DeepLIIF": (
        partial(resnet, norm=BATCH, bias=False, padding="zero", dropout=True, up="resize_conv", ends=nn.ZeroPad2d),
        {"norm": "batch", "padding": "zeros", "resize": "reflect", "up_bias": True},
    ),
    "BCI's pix2pix": (unet, {"norm": "batch", "downs": 5}),
    "other names, BatchNorm": (partial(NamedResnet, norm=BATCH), {"norm": "batch"}),
    "no norm layers": (partial(resnet, norm=no_norm, bias=False), {"norm": "none"}),
    "BatchNorm with biases": (partial(resnet, norm=BATCH), {"norm": "batch", "bias": True}),
}
TOLD = {"other names, BatchNorm": "batch", "no norm layers": "none", "BatchNorm with biases": "batch"}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, nn.Module, Path, Path, PictureArray]:
    """Name, module, checkpoint, and a picture of 2 × 3 patches, as a file and as an array."""
    name = request.param
    net = trained(FAMILIES[name][0]())
    if "tracked" in name:  # in eval mode it would not normalise with the window's statistics
        net.train()
    torch.save(net.state_dict(), tmp_path / "latest_net_G.pth")
    smooth = np.random.default_rng(1).integers(0, 256, (17, 25, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(smooth).resize((384, 256), Image.Resampling.BICUBIC))
    Image.fromarray(picture).save(tmp_path / "slide.png")
    return name, net, tmp_path / "latest_net_G.pth", tmp_path / "slide.png", picture


def made(slide: Path, model: Path, name: str, *options: object) -> PictureArray:
    """The translation of a slide, as integers (H, W, 3)."""
    output = slide.with_name("out.png")
    norm = ("--norm", TOLD[name]) if name in TOLD else ()
    translate(command_settings(slide, model, output, *norm, "--overwrite", *options), Watcher())
    return np.asarray(Image.open(output)).astype(int)


def test_a_published_family_equals_its_own_code(family: tuple[str, nn.Module, Path, Path, PictureArray]) -> None:
    name, net, model, slide, picture = family
    generator = load_generator(model, norm=TOLD.get(name))  # type: ignore[arg-type]
    assert {key: getattr(generator.spec, key) for key in FAMILIES[name][1]} == FAMILIES[name][1]
    with torch.inference_mode():
        own = patchwise(net, picture, 128)
        assert own.std() > 20, "a pale output would hide differences"
        assert np.abs(made(slide, model, name, "--method", "in") - own).max() <= 1
        if generator.channels:
            own = hooked_kin(net, picture, 128)
        assert np.abs(made(slide, model, name, "--kernel", "constant:3") - own).max() <= 1
    halo = generator.halo
    windows = [made(slide, model, name, "--seamless", "--window", side) for side in (128, 256, 384)]
    assert max(np.abs(window - windows[0]).max() for window in windows) <= 1
    if not generator.channels:  # far from the border the whole picture at once is the same
        inner = np.s_[halo:-halo, halo:-halo]
        assert np.abs(windows[0] - translated(net, picture))[inner].max(initial=0) <= 1


def ambiguous(norm: Callable[[int], nn.Module], *, bias: bool) -> dict[str, torch.Tensor]:
    return trained(resnet(norm=norm, bias=bias)).state_dict()


@pytest.mark.parametrize(
    ("state", "choices"),
    [
        (lambda: ambiguous(no_norm, bias=False), "none"),
        (lambda: ambiguous(BATCH, bias=True), "batch"),
        (lambda: trained(unet(norm=no_norm)).state_dict(), "none"),
        (lambda: trained(unet(bias=True)).state_dict(), "batch"),
        (lambda: ambiguous(TRACKED, bias=False), "batch"),
    ],
)
def test_two_readings_are_refused_until_one_is_chosen(
    tmp_path: Path, state: Callable[[], dict[str, torch.Tensor]], choices: str
) -> None:
    torch.save(state(), tmp_path / "G.pth")
    with pytest.raises(ModelError) as caught:
        load_generator(tmp_path / "G.pth")
    assert f"--norm {choices}" in str(caught.value.hint)
    assert "--norm instance" in str(caught.value.hint)
    norms: tuple[Norm, ...] = ("instance", "batch" if choices == "batch" else "none")
    for norm in norms:
        assert load_generator(tmp_path / "G.pth", norm=norm).spec.norm == norm  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("norm", "state"), [("batch", "no running statistics"), ("none", "parameters or running statistics")]
)
def test_a_choice_that_contradicts_the_file_is_refused(tmp_path: Path, norm: Norm, state: str) -> None:
    net = resnet() if norm == "batch" else resnet(norm=BATCH)
    torch.save(net.state_dict(), tmp_path / "G.pth")
    with pytest.raises(ModelError, match=state):
        load_generator(tmp_path / "G.pth", norm=norm)


def test_shapes_in_a_lost_order_are_not_guessed(tmp_path: Path) -> None:
    save_file(NamedResnet().state_dict(), tmp_path / "G.safetensors")
    with pytest.raises(ModelError, match="unknown network"):
        load_generator(tmp_path / "G.safetensors")


def test_padding_that_shapes_do_not_tell_is_said(tmp_path: Path) -> None:
    torch.save(NamedResnet().state_dict(), tmp_path / "G.pth")
    (note,) = load_generator(tmp_path / "G.pth").notes
    assert "padding cannot be told" in note


def test_a_table_of_a_network_without_instance_norm_is_refused(tmp_path: Path) -> None:
    torch.save(trained(unet()).state_dict(), tmp_path / "G.pth")
    Image.new("RGB", (128, 128)).save(tmp_path / "slide.png")
    made_of = command_settings(tmp_path / "slide.png", tmp_path / "G.pth", tmp_path / "out.png")
    with pytest.raises(UsageError, match="no InstanceNorm"):
        make_plan(dataclasses.replace(made_of, table=tmp_path / "table"))
