"""Architectures of generators: detect one from the keys and shapes of a state dict, build it, measure its reach."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Literal, NoReturn

import torch
from torch import Tensor, nn

from kin_cli.models.resnet import (
    BlurDownsample,
    BlurUpsample,
    FixedNorm,
    Norm,
    Padding,
    ResnetGenerator,
    ResnetSpec,
    UrustGenerator,
    UrustSpec,
)
from kin_cli.models.unet import MIN_DOWNS, FlatUnetGenerator, FlatUnetSpec, UnetGenerator, UnetSpec
from kin_cli.models.weights import Weights, listed

Spec = ResnetSpec | UrustSpec | UnetSpec | FlatUnetSpec

_KNOWN_HINT = (
    "known architectures: resnet-cyclegan, resnet-cut, resnet (antialias down or up only), urust, unet_128, unet_256"
)
_EXPORT = "export the whole state dict of the generator"
_BATCH_OR_INSTANCE = "--norm batch, or --norm instance if it was trained with InstanceNorm2d(track_running_stats=True)"
_NONE_OR_INSTANCE = "--norm none, or --norm instance if norm layers without parameters follow its convolutions"
_ENDS = "padding in front of its first and last convolution cannot be told from the file"
_BY_ORDER = (
    "recognised by the shapes of its layers in the order of the file, not by their names; its padding cannot be told "
    "from the file: taken as reflection before convolutions of stride 1: compare a patch with your own code"
)

# keys of weights inside the blocks that only this architecture has
_RESNET = re.compile(r"model\.(\d+)\.conv_block\.\d+\.weight")
_RESNET_LAYER = re.compile(r"model\.(\d+)\.")
# the same keys under other names of the chain and of what is inside a block
_NUMBERED = re.compile(r"(\w+\.)?\d+\.")
_CHAIN = re.compile(r"(\w+)\.(\d+)\.(?:([A-Za-z_]\w*)\.(\d+)\.)?(\w+)")
_URUST = re.compile(r"resnetblocks4\.(\d+)\.model\.\d+\.weight")
_UNET = re.compile(r"(model\.model\.)(?:1\.model\.)(?:3\.model\.)*\d+\.weight")

_FLAT_UNET = re.compile(r"down(\d+)\.model\.0\.weight")

_OTHER_NETWORKS = (
    (r"model\.0\.weight", "a PatchGAN discriminator"),
    (r"features\.\d+\.weight", "a VGG or another classifier"),
    (r"layer1\.0\.conv1\.weight", "a ResNet classifier"),
    (r"mlp_\d+\.", "the projection head of CUT (net_F)"),
)
_RESIDUAL = ("conv_block", "resnetblocks")  # parts of the keys of residual blocks
_UNET_DOWN = ".2"  # in each block of a U-Net, the norm on the way down is layer 2, the norm on the way up 6 or 4
_MAX_STRIP_PX = 1 << 14
_MAX_HALVINGS = 5
_MIN_CONVOLUTIONS = 6  # one at each end, one halving each way, one residual block
_RUNNING = ("running_mean", "running_var")


def build(spec: Spec) -> nn.Module:
    """Build the generator of a spec with PyTorch's default initialisation; on ``meta`` if only its keys are needed."""
    if isinstance(spec, ResnetSpec):
        return ResnetGenerator(spec)
    if isinstance(spec, FlatUnetSpec):
        return FlatUnetGenerator(spec)
    return UrustGenerator(spec) if isinstance(spec, UrustSpec) else UnetGenerator(spec)


def detect(weights: Weights, norm: Norm | None = None) -> Spec:
    """The spec that ``recognise`` finds."""
    return recognise(weights, norm)[1]


def recognise(weights: Weights, norm: Norm | None = None) -> tuple[Weights, Spec]:
    """Recognise a state dict: the same under the keys of the generator that ``build`` makes of the spec, and the spec.

    Keys and shapes must be exactly those of a known generator, or the shapes, in the order of the file, those of one.
    Affine parameters may have the shape (1, C, 1, 1) instead of (C,). Dropout in a U-Net leaves no trace in the keys
    and is reported as False. ``norm`` is the user's word for the kind of the norm layers.

    Raises ``ModelError``, naming the mismatch: another network, norm layers of a kind that cannot be told, missing or
    unexpected keys, wrong shapes, not three channels in and out, or a blur filter other than the official one.
    """
    weights, spec = _by_keys(_renamed(weights))
    _require_fit(weights, spec)
    if not isinstance(spec, UrustSpec | FlatUnetSpec):
        spec = dataclasses.replace(spec, norm=_norm_of(weights, spec, norm))
        if spec.norm == "batch":
            weights = _with_running_stats(weights)
            _require_fit(weights, spec)
    elif norm not in (None, "instance"):
        weights.refuse(f"is of the architecture {spec.architecture}, which has InstanceNorm", "leave out --norm")
    if isinstance(spec, ResnetSpec) and spec.padding == "zeros":
        note = f"{_ENDS}: taken as {'zeros' if spec.ends == 'zeros' else 'reflection'}"
        weights = dataclasses.replace(weights, notes=(*weights.notes, note))
    if (spec.in_channels, spec.out_channels) != (3, 3):
        weights.refuse(
            f"translates {spec.in_channels} channels to {spec.out_channels}", "KIN needs a generator from RGB to RGB"
        )
    return weights, spec


def _by_keys(weights: Weights) -> tuple[Weights, Spec]:
    """The weights under official keys, and the spec that their keys and shapes tell, norm layers aside."""
    # by keys of inner blocks: a discriminator has model.0 and model.2, too
    for pattern, spec_of in (
        (_RESNET, _resnet_spec),
        (_URUST, _urust_spec),
        (_UNET, _unet_spec),
        (_FLAT_UNET, _flat_unet_spec),
    ):
        if any(pattern.fullmatch(name) for name in weights.tensors):
            return weights, spec_of(weights)
    return _by_order(weights) or _refuse_unknown(weights)


def _norm_of(weights: Weights, spec: ResnetSpec | UnetSpec, given: Norm | None) -> Norm:
    """The kind of the norm layers, as ``given`` or as the file tells.

    The official code gives convolutions in front of a norm layer a bias exactly for InstanceNorm. BatchNorm has running
    statistics, and almost always parameters; InstanceNorm may have either. Without running statistics BatchNorm is
    InstanceNorm for a batch of one.

    Raises ``ModelError`` if the file allows two readings, or contradicts the user.
    """
    running = bool(weights.running_stats)
    if given == "batch" and not running:
        weights.refuse("has no running statistics, which BatchNorm needs", "leave out --norm batch")
    if given == "none" and (running or spec.affine):
        weights.refuse("has parameters or running statistics of norm layers", "leave out --norm none")
    if given is not None:
        return given
    match running, spec.affine, spec.bias:
        case True, True, False:
            return "batch"
        case (True, True, True) | (True, False, False):
            why = "has running statistics, which BatchNorm has, and InstanceNorm may have: its file does not tell which"
            weights.refuse(why, _BATCH_OR_INSTANCE)
        case False, False, False:
            why = "has neither norm parameters nor biases in front of norm layers, as networks without norm layers"
            weights.refuse(why, _NONE_OR_INSTANCE)
    return "instance"


def _with_running_stats(weights: Weights) -> Weights:
    """The weights with the running statistics that were dropped, and without the note that says so."""
    kept = {name: tensor for name, tensor in _renamed_keys(weights.stored).items() if name.endswith(_RUNNING)}
    notes = tuple(note for note in weights.notes if not note.startswith("dropped running statistics"))
    return dataclasses.replace(weights, tensors={**weights.tensors, **kept}, notes=notes)


def _renamed(weights: Weights) -> Weights:
    """The weights under the official keys of a ResNet if only the names of the chain and of the blocks are others."""
    renamed = _renamed_keys(weights.tensors)
    return weights if renamed.keys() == weights.tensors.keys() else dataclasses.replace(weights, tensors=renamed)


def _renamed_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {name: match for name in state if (match := _CHAIN.fullmatch(name))}
    inner = {match[3] for match in found.values() if match[3]}
    if len(found) < len(state) or len(inner) != 1 or len({match[1] for match in found.values()}) != 1:
        return state
    places = {name: f"{match[2]}.conv_block.{match[4]}" if match[3] else match[2] for name, match in found.items()}
    return {f"model.{places[name]}.{found[name][5]}": tensor for name, tensor in state.items()}


def _resnet_spec(weights: Weights) -> ResnetSpec:
    names = weights.tensors
    first, last = _numbers(weights, _RESNET, "model.{}.conv_block")
    filters = [int(name.split(".")[1]) for name in names if re.fullmatch(r"model\.\d+\.filt", name)]
    tail = max(int(match[1]) for name in names if (match := _RESNET_LAYER.match(name)))
    width, in_channels = _channels(weights, "model.1.weight")
    out_channels, _ = _channels(weights, f"model.{tail}.weight")
    inside = f"model.{first}.conv_block."
    zeros = f"{inside}0.weight" in names
    deep, _ = _channels(weights, inside + ("0.weight" if zeros else "1.weight"))
    halvings = max(1, round(math.log2(max(1, deep // width))))
    # each blur is one more layer, so the numbers show them even if the key is missing, which is then named
    after = tail - last - 2
    antialias_down = first == 4 + 4 * halvings or any(layer < first for layer in filters)
    resized = after == 5 * halvings or (after == 4 * halvings and not filters and not antialias_down)
    resize: Padding | Literal[""] = ("reflect" if after == 5 * halvings else "zeros") if resized else ""
    bias = _any_key(weights, r"model\.1\.bias|" + re.escape(inside) + ("0" if zeros else "1") + r"\.bias")
    up = tail - 4 if after >= 3 else 0
    up_bias = f"model.{up}.bias" in names if resized else bias
    return ResnetSpec(
        width=width,
        blocks=last - first + 1,
        antialias_down=antialias_down,
        antialias_up=not resized and (after == 4 * halvings or any(layer > last for layer in filters)),
        affine=_any_key(weights, rf"model\.2\.weight|model\.\d+\.conv_block\.{1 if zeros else 2}\.weight"),
        dropout=not _any_key(weights, rf"model\.\d+\.conv_block\.{3 if zeros else 5}\.weight"),
        in_channels=in_channels,
        out_channels=out_channels,
        bias=bias,
        padding="zeros" if zeros else "reflect",
        halvings=halvings,
        resize=resize,
        up_bias=None if up_bias == bias else up_bias,
    )


def _by_order(weights: Weights) -> tuple[Weights, ResnetSpec] | None:
    """The weights under official keys, and the spec, of a ResNet told by the shapes of its layers in order, or None.

    A file whose keys are sorted by the alphabet, as safetensors writes them, has lost the order. Numbers of a single
    chain of layers count those without weights, too, so that they must be the official ones.
    """
    names = list(weights.tensors)
    if all(_NUMBERED.match(name) for name in names):
        return None
    shapes = [tuple(tensor.shape) for tensor in weights.tensors.values()]
    weight = [shape for shape in shapes if len(shape) == 4 and 0 not in shape and shape[0] > 1 and shape[2] > 1]
    if len(weight) < _MIN_CONVOLUTIONS or names == sorted(names):
        return None
    width, in_channels = weight[0][:2]
    halvings = 0
    while weight[halvings + 1][:2] == (width << (halvings + 1), width << halvings) and halvings < _MAX_HALVINGS:
        halvings += 1
    blocks, odd = divmod(len(weight) - 2 - 2 * halvings, 2)
    if odd or not halvings or blocks < 1:
        return None
    convolutions = [number for number, shape in enumerate(shapes) if len(shape) == 4 and shape[2] > 1]
    bias = shapes[1] == (width,) and names[1].rpartition(".")[2] == "bias"
    affine = sum(len(shape) == 1 for shape in shapes) > len(convolutions)
    spec = ResnetSpec(
        width, blocks, affine=affine, in_channels=in_channels, out_channels=weight[-1][0], bias=bias, halvings=halvings
    )
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build(spec).state_dict().items()}
    ends = [name.rpartition(".")[2] for name in names]
    if list(expected.values()) != shapes or [name.rpartition(".")[2] for name in expected] != ends:
        return None
    keys = {old.rpartition(".")[0]: new.rpartition(".")[0] for old, new in zip(names, expected, strict=True)}

    def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = {name: name.rpartition(".") for name in state}
        return {f"{keys.get(parts[name][0], parts[name][0])}.{parts[name][2]}": state[name] for name in state}

    tensors, stored = renamed(weights.tensors), renamed(weights.stored)
    return dataclasses.replace(weights, tensors=tensors, stored=stored, notes=(*weights.notes, _BY_ORDER)), spec


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
    # the weight of a transposed convolution is (in, out, h, w)
    _, out_channels = _channels(weights, "model.model.3.weight")
    # every downsampling nests its keys one "model." deeper
    downs = max(name.count("model.") for name in weights.tensors if _UNET.fullmatch(name)) - 1
    if downs < MIN_DOWNS:
        weights.refuse(f"is a U-Net of {downs} downsamplings", f"official U-Nets have at least {MIN_DOWNS}")
    return UnetSpec(
        width=width,
        downs=downs,
        affine="model.model.1.model.2.weight" in weights.tensors,
        in_channels=in_channels,
        out_channels=out_channels,
        bias=_any_key(weights, r"model\.model\.0\.bias|model\.model\.1\.model\.1\.bias"),
    )


def _flat_unet_spec(weights: Weights) -> FlatUnetSpec:
    _, downs = _numbers(weights, _FLAT_UNET, "down{}")
    width, in_channels = _channels(weights, "down1.model.0.weight")
    out_channels, _ = _channels(weights, "final.2.weight")
    if downs < MIN_DOWNS:
        weights.refuse(f"is a U-Net of {downs} downsamplings", f"those of PyTorch-GAN have at least {MIN_DOWNS}")
    return FlatUnetSpec(width=width, downs=downs, in_channels=in_channels, out_channels=out_channels)


def _numbers(weights: Weights, pattern: re.Pattern[str], block: str) -> tuple[int, int]:
    """Numbers of the first and last residual block; all between must be there."""
    seen = {int(match[1]) for name in weights.tensors if (match := pattern.fullmatch(name))}
    first, last = min(seen), max(seen)
    if last - first + 1 != len(seen):
        gap = next(number for number in range(first, last) if number not in seen)
        weights.refuse(f"lacks the residual block {block.format(gap)}", _EXPORT)
    return first, last


def _channels(weights: Weights, name: str) -> tuple[int, int]:
    """The first two sizes of a convolution's weight."""
    tensor = weights.tensors.get(name)
    if tensor is None:
        weights.refuse(f"lacks the key {name}", _EXPORT)
    if tensor.dim() != 4 or tensor.numel() == 0:
        weights.refuse(f"has a {name} of shape {tuple(tensor.shape)}, which no convolution has", _KNOWN_HINT)
    return tensor.shape[0], tensor.shape[1]


def _any_key(weights: Weights, pattern: str) -> bool:
    return any(re.fullmatch(pattern, name) for name in weights.tensors)


def _require_fit(weights: Weights, spec: Spec) -> None:
    """Raise ``ModelError`` unless keys, shapes and dtypes are those of the spec's generator."""
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build(spec).state_dict().items()}
    missing = [name for name in expected if name not in weights.tensors]
    unexpected = [name for name in weights.tensors if name not in expected]
    problems = [f"lacks {listed(missing)}"] if missing else []
    problems += [f"has unexpected keys: {listed(unexpected)}"] if unexpected else []
    if problems:
        weights.refuse(
            f"does not fit the architecture {spec.architecture}: it {' and '.join(problems)}",
            "export the whole state dict of the generator, unchanged",
        )
    for name, tensor in weights.tensors.items():
        shape, found = expected[name], tuple(tensor.shape)
        if found not in (shape, (1, *shape, 1, 1)):
            weights.refuse(f"has a {name} of shape {found} where {spec.architecture} needs {shape}", _KNOWN_HINT)
        if tensor.layout != torch.strided or tensor.is_meta or not tensor.dtype.is_floating_point:
            weights.refuse(
                f"holds no plain floating-point weights in {name}: {tensor.dtype}, {tensor.layout}, {tensor.device}",
                "export the weights as they were in training",
            )
        if name.endswith(".filt"):
            _require_official_blur(weights, name)


def _require_official_blur(weights: Weights, name: str) -> None:
    """Raise ``ModelError`` for another blur filter: the generator never reads this buffer, so it would be ignored."""
    found = weights.tensors[name]
    official = BlurDownsample(len(found)) if found.shape[-1] == 3 else BlurUpsample(len(found))
    if not torch.equal(found.float(), official.filt):
        weights.refuse(f"has a blur filter {name} other than the official one", _KNOWN_HINT)


def _refuse_unknown(weights: Weights) -> NoReturn:
    names = list(weights.tensors)
    other = next((what for pattern, what in _OTHER_NETWORKS if any(re.match(pattern, name) for name in names)), None)
    what = f"looks like {other}, not like a generator" if other else "is of an unknown network"
    weights.refuse(f"{what}; keys seen: {listed(names)}", _KNOWN_HINT)


@dataclass(frozen=True)
class LayerBlock:
    """Consecutive norm layers under the authors' name for them, such as ``down 1``, and their channels of the table."""

    name: str
    layers: int
    channels: slice


def layer_blocks(layers: Sequence[tuple[str, int]]) -> list[LayerBlock]:
    """Group norm layers, given as (name, channels) in running order (``TableNetwork.layers``), into blocks.

    A ResNet has ``conv``, ``down 1``, ``down 2``, ``residual`` (all residual blocks), ``up 1``, ``up 2``, as in the
    paper's Figure S1; a U-Net has one block for each norm layer, and so has a network of one's own, under their names.
    """
    starts = [0, *accumulate(channels for _, channels in layers)]
    blocks: list[LayerBlock] = []
    if any(name.split(".")[0] == "net" for name, _ in layers):
        slices = itertools.pairwise(starts)
        return [LayerBlock(name, 1, slice(*ends)) for (name, _), ends in zip(layers, slices, strict=True)]
    numbered = enumerate(_kinds([name for name, _ in layers]))
    for key, group in groupby(numbered, key=lambda pair: pair[1] if pair[1] == "residual" else pair):
        members = [number for number, _ in group]
        name = key if isinstance(key, str) else key[1]
        if name in ("down", "up"):
            name = f"{name} {1 + sum(block.name.startswith(name) for block in blocks)}"
        channels = slice(starts[members[0]], starts[members[-1] + 1])
        blocks.append(LayerBlock(name, len(members), channels))
    return blocks


def _kinds(names: list[str]) -> list[str]:
    """``conv``, ``down``, ``residual`` or ``up`` for each norm layer of a known architecture."""
    residual = [number for number, name in enumerate(names) if any(part in name for part in _RESIDUAL)]
    if not residual:
        return ["down" if name.endswith(_UNET_DOWN) or name.startswith("down") else "up" for name in names]
    kinds = []
    for number in range(len(names)):
        before = "conv" if number == 0 else "down"
        kinds.append("residual" if number in residual else before if number < residual[0] else "up")
    return kinds


@lru_cache
def halo_px(spec: Spec) -> int:
    """Radius of the receptive field: largest distance in pixels between an input pixel and an output pixel it affects.

    With a halo of this many real pixels, no pixel of a window depends on the padding at its border. Norm layers do not
    count, because their statistics come from the table.

    For a U-Net with n downsamplings the radius is 3 · (2ⁿ - 1) pixels: n convolutions of 4 taps and stride 2 down, and
    n up; 765 for ``unet_256``. For the others ``measured_radius_px`` measures it, on a generator of width 1.
    """
    if isinstance(spec, FlatUnetSpec):
        return 3 * spec.stride  # the repeated pixels of the last doubling add less than 3
    if isinstance(spec, UnetSpec):
        return 3 * (spec.stride - 1)
    narrow = dataclasses.replace(spec, width=1, in_channels=1, out_channels=1, affine=False)
    with torch.device("meta"):
        module = build(narrow)
    return measured_radius_px(module, stride=spec.stride, in_channels=1)


def measured_radius_px(module: nn.Module, *, stride: int, in_channels: int = 3) -> int:
    """Measure the radius of the receptive field of a convolutional network (B, C, H, W) → (B, C', H, W), in pixels.

    Impulses at every phase of ``stride`` along x are sent through a copy without InstanceNorm, in float64, all weights
    positive. So nothing cancels, and the response is non-zero exactly within the receptive field. Kernels are assumed
    to be square. The module may be on the ``meta`` device.

    Raises ``ValueError`` if the response reaches the border of the widest strip tried, 16,384 px.
    """
    probe = _positive_copy(module)
    height, width = max(8, 2 * stride), 64 * stride  # two rows at the deepest level, which reflect
    while width <= _MAX_STRIP_PX:
        impulses = torch.zeros(stride, in_channels, height, width, dtype=torch.float64)
        columns = [width // 2 + phase for phase in range(stride)]
        for phase, column in enumerate(columns):
            impulses[phase, :, height // 2, column] = 1.0
        with torch.inference_mode():
            response = probe(impulses).ne(0).any(dim=2).any(dim=1)  # (stride, width)
        if not response[:, [0, -1]].any():
            reached = [row.nonzero().flatten() for row in response]
            return max(max(c - int(hit[0]), int(hit[-1]) - c) for c, hit in zip(columns, reached, strict=True))
        width *= 2
    raise ValueError(f"the receptive field of the network is wider than {_MAX_STRIP_PX} px")


def _positive_copy(module: nn.Module) -> nn.Module:
    """A float64 copy on the CPU without norm layers, all weights positive and all biases 0."""
    probe = copy.deepcopy(module).to_empty(device="cpu").double().eval()
    for name, layer in list(probe.named_modules()):
        if isinstance(layer, nn.InstanceNorm2d | FixedNorm):
            parent, _, attribute = name.rpartition(".")
            setattr(probe.get_submodule(parent), attribute, nn.Identity())
    with torch.no_grad():
        for tensor in (*probe.parameters(), *probe.buffers()):
            # so small that Tanh does not saturate, so large that nothing underflows
            tensor.fill_(1.0 / tensor[0].numel() if tensor.dim() > 1 else 0.0)
    return probe
