"""Which generator a state dict belongs to: layout and sizes from its keys and shapes alone."""

from __future__ import annotations

import re
from typing import NoReturn

import torch
from torch import nn

from kin_cli.models.resnet import BlurDownsample, BlurUpsample, ResnetGenerator, ResnetSpec
from kin_cli.models.unet import MIN_DOWNS, UnetGenerator, UnetSpec
from kin_cli.models.urust import UrustGenerator, UrustSpec
from kin_cli.models.weights import Weights, listed

Spec = ResnetSpec | UrustSpec | UnetSpec

_KNOWN_HINT = (
    "known layouts: resnet-cyclegan, resnet-cut, resnet (antialias down or up only), urust, unet_128, unet_256"
)

# keys of weights inside the blocks that only this layout has
_RESNET = re.compile(r"model\.(\d+)\.conv_block\.\d+\.weight")
_RESNET_LAYER = re.compile(r"model\.(\d+)\.")
_URUST = re.compile(r"resnetblocks4\.(\d+)\.model\.\d+\.weight")
_UNET = re.compile(r"(model\.model\.)(?:1\.model\.)(?:3\.model\.)*\d+\.weight")

_OTHER_NETWORKS = (
    (r"model\.0\.weight", "a PatchGAN discriminator"),
    (r"features\.\d+\.weight", "a VGG or another classifier"),
    (r"layer1\.0\.conv1\.weight", "a ResNet classifier"),
    (r"mlp_\d+\.", "the projection head of CUT (net_F)"),
)


def build(spec: Spec) -> nn.Module:
    """The generator of a spec, freshly initialised by PyTorch's defaults; build it on ``meta`` to learn its keys."""
    if isinstance(spec, ResnetSpec):
        return ResnetGenerator(spec)
    return UrustGenerator(spec) if isinstance(spec, UrustSpec) else UnetGenerator(spec)


def detect(weights: Weights) -> Spec:
    """The spec whose keys and shapes these are, all of them and no others.

    Affine parameters may have the shape (1, C, 1, 1) instead of (C,). Dropout in a U-Net leaves no trace and is
    reported as False.

    Raises ``ModelError`` naming what does not fit: another network, BatchNorm, missing or unexpected keys, other
    shapes, other than three channels in or out, a blur filter other than the official one.
    """
    names = list(weights.tensors)
    # by what lies inside, not by the first key: a discriminator has model.0 and model.2, too
    if any(_RESNET.fullmatch(name) for name in names):
        spec: Spec = _resnet_spec(weights)
    elif any(_URUST.fullmatch(name) for name in names):
        spec = _urust_spec(weights)
    elif any(_UNET.fullmatch(name) for name in names):
        spec = _unet_spec(weights)
    else:
        _refuse_unknown(weights)
    # official generators give their convolutions no bias in front of BatchNorm, and only there
    if weights.running_stats and not isinstance(spec, UrustSpec) and spec.affine and not spec.bias:
        weights.refuse("is a generator with BatchNorm", "KIN needs InstanceNorm: train with --norm instance")
    _require_fit(weights, spec)
    if (spec.in_channels, spec.out_channels) != (3, 3):
        weights.refuse(
            f"translates {spec.in_channels} channels to {spec.out_channels}", "KIN needs a generator from RGB to RGB"
        )
    return spec


def _resnet_spec(weights: Weights) -> ResnetSpec:
    names = weights.tensors
    first, last = _numbers(weights, _RESNET, "model.{}.conv_block")
    filters = [int(name.split(".")[1]) for name in names if re.fullmatch(r"model\.\d+\.filt", name)]
    tail = max(int(match[1]) for name in names if (match := _RESNET_LAYER.match(name)))
    width, in_channels = _channels(weights, "model.1.weight")
    out_channels, _ = _channels(weights, f"model.{tail}.weight")
    return ResnetSpec(
        width=width,
        blocks=last - first + 1,
        # a blur is one more layer in each of two steps, so it shows in the numbers, too: a missing key can be named
        antialias_down=first == 12 or any(layer < first for layer in filters),
        antialias_up=tail - last == 10 or any(layer > last for layer in filters),
        affine=_any_key(weights, r"model\.2\.weight|model\.\d+\.conv_block\.2\.weight"),
        dropout=not _any_key(weights, r"model\.\d+\.conv_block\.5\.weight"),
        in_channels=in_channels,
        out_channels=out_channels,
        bias=_any_key(weights, r"model\.1\.bias|model\.\d+\.conv_block\.1\.bias"),
    )


def _urust_spec(weights: Weights) -> UrustSpec:
    _, last = _numbers(weights, _URUST, "resnetblocks4.{}")
    width, in_channels = _channels(weights, "block1.0.weight")
    out_channels, _ = _channels(weights, "block7.1.weight")
    return UrustSpec(
        width=width,
        blocks=last + 1,
        affine=_any_key(weights, r"block1\.1\.weight|resnetblocks4\.\d+\.model\.2\.weight"),
        in_channels=in_channels,
        out_channels=out_channels,
    )


def _unet_spec(weights: Weights) -> UnetSpec:
    width, in_channels = _channels(weights, "model.model.0.weight")
    # of a transposed convolution the outputs come second
    _, out_channels = _channels(weights, "model.model.3.weight")
    # every halving nests its keys one "model." deeper
    downs = max(name.count("model.") for name in weights.tensors if _UNET.fullmatch(name)) - 1
    if downs < MIN_DOWNS:
        weights.refuse(f"is a U-Net of {downs} halvings", f"official U-Nets have at least {MIN_DOWNS}")
    return UnetSpec(
        width=width,
        downs=downs,
        affine="model.model.1.model.2.weight" in weights.tensors,
        in_channels=in_channels,
        out_channels=out_channels,
        bias=_any_key(weights, r"model\.model\.0\.bias|model\.model\.1\.model\.1\.bias"),
    )


def _numbers(weights: Weights, pattern: re.Pattern[str], block: str) -> tuple[int, int]:
    """First and last number of the residual blocks, which must be consecutive."""
    seen = {int(match[1]) for name in weights.tensors if (match := pattern.fullmatch(name))}
    first, last = min(seen), max(seen)
    if last - first + 1 != len(seen):
        gap = next(number for number in range(first, last) if number not in seen)
        weights.refuse(f"lacks the residual block {block.format(gap)}", "export the whole state dict of the generator")
    return first, last


def _channels(weights: Weights, name: str) -> tuple[int, int]:
    """First two extents of a convolution's weight."""
    tensor = weights.tensors.get(name)
    if tensor is None:
        weights.refuse(f"lacks the key {name}", "export the whole state dict of the generator")
    if tensor.dim() != 4 or tensor.numel() == 0:
        weights.refuse(f"has a {name} of shape {tuple(tensor.shape)}, which no convolution has", _KNOWN_HINT)
    return tensor.shape[0], tensor.shape[1]


def _any_key(weights: Weights, pattern: str) -> bool:
    return any(re.fullmatch(pattern, name) for name in weights.tensors)


def _require_fit(weights: Weights, spec: Spec) -> None:
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build(spec).state_dict().items()}
    missing = [name for name in expected if name not in weights.tensors]
    unexpected = [name for name in weights.tensors if name not in expected]
    problems = [f"lacks {listed(missing)}"] if missing else []
    problems += [f"has unexpected keys: {listed(unexpected)}"] if unexpected else []
    if problems:
        weights.refuse(
            f"does not fit the layout {spec.layout}: it {' and '.join(problems)}",
            "export the whole state dict of the generator, unchanged",
        )
    for name, tensor in weights.tensors.items():
        shape, found = expected[name], tuple(tensor.shape)
        if found not in (shape, (1, *shape, 1, 1)):
            weights.refuse(f"has a {name} of shape {found} where {spec.layout} needs {shape}", _KNOWN_HINT)
        if tensor.layout != torch.strided or tensor.is_meta or not tensor.dtype.is_floating_point:
            weights.refuse(
                f"holds no plain floating-point weights in {name}: {tensor.dtype}, {tensor.layout}, {tensor.device}",
                "export the weights as they were in training",
            )
        if name.endswith(".filt"):
            _require_official_blur(weights, name)


def _require_official_blur(weights: Weights, name: str) -> None:
    """The generator does not read these buffers, so another filter would be another network."""
    found = weights.tensors[name]
    official = BlurDownsample(len(found)) if found.shape[-1] == 3 else BlurUpsample(len(found))
    if not torch.equal(found.float(), official.filt):
        weights.refuse(f"has a blur filter {name} other than the official one", _KNOWN_HINT)


def _refuse_unknown(weights: Weights) -> NoReturn:
    names = list(weights.tensors)
    other = next((what for pattern, what in _OTHER_NETWORKS if any(re.match(pattern, name) for name in names)), None)
    what = f"looks like {other}, not like a generator" if other else "is of an unknown network"
    weights.refuse(f"{what}; keys seen: {listed(names)}", _KNOWN_HINT)
