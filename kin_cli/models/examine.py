"""What a network of one's own does, found out by running it: sizes, norms, reach, and what depends on the window."""

from __future__ import annotations

import contextlib
import copy
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kin_cli.errors import KinError, ModelError, is_out_of_memory, lost_device
from kin_cli.models.calls import CallNetwork, Reach, Trace, norm_calls, probe, traced
from kin_cli.models.exchange import exchange_norms
from kin_cli.models.weights import listed
from kin_cli.norm.layer import Field, MeasuredError
from kin_cli.norm.lookup import Lookup

_SIDES = (64, 128, 256, 512)  # px, tried for a first forward
_BORDERS = "borders may remain"
_HALF_RANGE, _VISIBLE_LEVELS = 127.5, 2
_SHIFT_STRIDES = 3
_ODD_SIDES = (96, 120, 420)  # px, for networks that halve no number, but divide it by 3, 5 or 7
_STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64, 96, 128, 256)
_UNMEASURED_HALO = 64
_TOLERANCE = 4e-3  # in the network's output, of a range of 2: half a grey level
_LARGER = 1.5  # memory that operations take inside torch, beside the feature maps that are seen
_SIGMOIDS = {"sigmoid", "sigmoid_"}


@contextlib.contextmanager
def own_code() -> Iterator[None]:
    """What the user's code prints goes to stderr: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


class OwnNetwork(nn.Module):
    """A network of the user's own, (1, 3, H, W) to the same shape; what goes wrong in it becomes a ``ModelError``."""

    def __init__(self, net: nn.Module, name: str) -> None:
        super().__init__()
        self.net, self.name, self.returns = net, name, 1

    def forward(self, x: Tensor) -> Tensor:
        """Run the network; of several results take the first that is an image."""
        size = f"{x.shape[3]}×{x.shape[2]} px"
        try:
            with own_code():
                made = self.net(x)
        except (KinError, MeasuredError):
            raise
        except Exception as error:
            if is_out_of_memory(error) or lost_device(error, self.name) is not None:
                raise
            text = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{self.name} fails on {size}: {type(error).__name__}{f': {text}' if text else ''}",
                "it gets images (1, 3, height, width); see --patch-size, --halo and --network-args",
            ) from error
        return self._checked(made, x, size)

    def _checked(self, made: object, x: Tensor, size: str) -> Tensor:
        results = list(made.values()) if isinstance(made, Mapping) else made
        if isinstance(results, list | tuple):
            self.returns = len(results)
            made = next((one for one in results if isinstance(one, Tensor) and one.shape == x.shape), made)
        if not isinstance(made, Tensor):
            raise ModelError(f"{self.name} returns a {type(made).__name__}, not an image", "kin needs (B, 3, H, W)")
        if made.dim() != 4 or made.shape[1] != 3:
            raise ModelError(
                f"{self.name} returns a tensor of shape {tuple(made.shape)} for (1, 3, {x.shape[2]}, {x.shape[3]})",
                "KIN needs a generator from RGB to RGB: (B, 3, H, W)",
            )
        if made.shape != x.shape:
            raise ModelError(
                f"{self.name} changes the size: {made.shape[3]}×{made.shape[2]} px for {size}",
                "kin needs an output of the size of the input",
            )
        if not made.is_floating_point():
            raise ModelError(f"{self.name} returns {made.dtype}, not floating-point numbers", "return it unrounded")
        return made


@dataclass(frozen=True)
class Examination:
    """What an examination found.

    ``sites`` are the calls of a norm (name, channels); ``fused`` says whether the faster exchange of layers does the
    same as that of calls. ``side`` is a side in px that the network takes; sizes are multiples of ``stride``. ``halo``
    is the radius of its receptive field, or what is taken for it. ``bytes_per_px`` is the memory of its feature maps.
    """

    sites: list[tuple[str, int]]
    side: int
    stride: int
    halo: int
    reach: Reach
    fused: bool
    bytes_per_px: float
    notes: tuple[str, ...]


def examined(net: OwnNetwork, patch_px: int) -> Examination:
    """Run the network on some noise and find out what ``Generator`` has to know. Raises ``ModelError`` if it fails."""
    side, out, trace = _first_run(net, patch_px)
    step = _step(net, side)
    stride = side if step is None else step
    if step is not None and side % trace.smallest == 0:
        coarse = math.lcm(step, side // trace.smallest)
        stride = coarse if patch_px % coarse == 0 else step
    calls = CallNetwork(net, trace.sites)
    reach = probe(calls, side=side, stride=stride) if step is not None else Reach(None, ())
    halo = reach.radius_px if reach.radius_px is not None else (_UNMEASURED_HALO if step is not None else 0)
    notes = [*_notes(net, out, trace, reach, halo=halo, only=side if step is None else None)]
    if step is not None and not reach.spreaders and (levels := _inconsistency(calls, side, stride, halo)):
        notes.append(
            f"its output depends on the size and place of the window, by up to {levels} grey levels: {_BORDERS}"
        )
    fused = _is_fusible(net, calls, side=side, stride=stride)
    return Examination(
        trace.sites, side, stride, halo, reach, fused, _LARGER * trace.peak_bytes / side**2, tuple(notes)
    )


def _noise(side: int) -> Tensor:
    return 2 * torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) - 1


def _first_run(net: OwnNetwork, patch_px: int) -> tuple[int, Tensor, Trace]:
    """A forward on the smallest square that the network takes; raises the error of a whole patch if it takes none."""
    refusal = None
    for side in (*(side for side in _SIDES if side < patch_px), patch_px, *_ODD_SIDES):
        try:
            out, trace = traced(net, _noise(side))
        except ModelError as error:
            refusal = error if side == patch_px else refusal
            continue
        return side, out, trace
    assert refusal is not None
    raise refusal


def _step(net: OwnNetwork, side: int) -> int | None:
    """By what sizes may differ: the smallest step from ``side`` that the network takes; None if it takes no other."""
    for step in _STEPS:
        with contextlib.suppress(ModelError), torch.inference_mode():
            net(_noise(side + step))
            return step
    return None


def _notes(net: OwnNetwork, out: Tensor, trace: Trace, reach: Reach, *, halo: int, only: int | None) -> Iterator[str]:
    """What the user should know of it; ``only`` is the side in px of the one size that it takes, if it is so."""
    if net.returns > 1:
        yield f"its forward returns {net.returns} results, of which the first image is taken"
    with torch.inference_mode():
        if not torch.equal(net(_noise(out.shape[2])), out):
            yield "it gives another result each time: patches will not fit together, and no run can be repeated"
    if trace.last in _SIGMOIDS:
        yield "it ends with a sigmoid, whose output is 0 to 1: see --input-range 0,1"
    if reach.spreaders:
        kept = len(reach.spreaders)
        layers = f"{kept} layer keeps its" if kept == 1 else f"{kept} layers keep their"
        names = listed([name.removeprefix("net.") for name in reach.spreaders])
        yield f"{layers} own statistics: {_BORDERS} ({names})"
    if only is not None:
        yield f"it takes images of {only}×{only} px alone: no halo is possible, and {_BORDERS}"
    elif reach.radius_px is None:
        yield f"its receptive field cannot be measured: --seamless takes a halo of {halo} px, --halo N another"
    if not trace.sites:
        yield "it has no norm layer that a table can serve: --method and --kernel change nothing"


def materialised(net: OwnNetwork, patch_px: int) -> OwnNetwork:
    """The network with the parameters of lazy layers made, by a first forward, and half precision made float32."""
    for tensor in (*net.parameters(), *net.buffers()):
        if not is_lazy(tensor) and tensor.dtype in (torch.float16, torch.bfloat16):
            tensor.data = tensor.data.float()
    if any(is_lazy(parameter) for parameter in net.parameters()):
        with torch.no_grad():
            net(_noise(patch_px))
    return net


def _inconsistency(calls: CallNetwork, side: int, stride: int, halo: int) -> int:
    """Grey levels by which a window with its halo differs from the same pixels in a larger window; 0 if not visibly.

    Both with the same statistics of norms, so that all windows of a sound network agree.
    """
    margin = math.ceil(halo / stride) * stride
    small, before = side + 2 * margin, _SHIFT_STRIDES * stride
    length = before + small + side // stride * stride
    noise = 2 * torch.rand(1, 3, side, length, generator=torch.Generator().manual_seed(1)) - 1
    strip = noise * torch.linspace(0.1, 1, length)  # so that statistics of a part are not those of the whole
    part = slice(before, before + small)
    try:
        stats = calls.measure(strip.clone())
        whole = calls.applied_uniform(strip.clone(), stats)[..., part]
        alone = calls.applied_uniform(strip[..., part].clone(), stats)
    except ModelError:  # it takes squares alone
        return 0
    core = slice(margin, margin + side)
    levels = int((whole - alone)[..., core].abs().nan_to_num().max() * _HALF_RANGE)
    return levels if levels >= _VISIBLE_LEVELS else 0


def _is_fusible(net: OwnNetwork, calls: CallNetwork, *, side: int, stride: int) -> bool:
    """Whether the exchange of layers, which is faster, gives what that of calls gives, also with varying statistics."""
    halo = stride
    patch = 2 * side
    if any(tensor.dtype != torch.float32 for tensor in net.parameters()):
        return False
    try:
        fused = exchange_norms(copy.deepcopy(net), side=side)
        fused.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs
        if [channels for _, channels in fused.layers] != [channels for _, channels in calls.layers]:
            return False
        x = torch.rand(1, 3, patch + 2 * halo, 2 * patch + 2 * halo, generator=torch.Generator().manual_seed(0)) * 2 - 1
        stats = calls.measure(x)
        lookup = Lookup(patch, halo, "bilinear")
        mean, std = stats.unbind(1)
        rows, cols = len(lookup.span(1)), len(lookup.span(2))
        cells = torch.stack([mean, 1 / std.clamp_min(1e-6)], dim=1).expand(1, 2, -1)[:, None, None]
        cells = cells * torch.linspace(0.8, 1.2, rows * cols).view(1, rows, cols, 1, 1)
        field = Field(cells, lookup, (1, 2))
        same = (fused.measure(x) - stats).abs().max() <= _TOLERANCE * stats.abs().max()
        ours = fused.apply(x.to(memory_format=torch.channels_last), field)
        alone = Field(cells[:, :1, :1], lookup, (1, 2))
        folded = fused.apply(x.to(memory_format=torch.channels_last), alone)
        return bool(
            same
            and not norm_calls(lambda: fused.apply(x, alone))
            and (ours - calls.apply(x, field)).abs().max() <= _TOLERANCE
            and (folded - calls.apply(x, alone)).abs().max() <= _TOLERANCE
        )
    except Exception:
        return False
