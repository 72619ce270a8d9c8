"""Exchange of instance normalization by its calls: makes a network that kin does not know ready for both passes.

``exchange`` replaces layers that it recognises; here every call that normalizes each channel of one image over its
pixels is intercepted while the network runs, whatever layer or function makes it: ``InstanceNorm2d`` and its
subclasses, ``F.instance_norm``, ``GroupNorm`` with one channel per group, and the batch norm of AdaIN layers that fold
the batch into the channels. The calls of a forward are told apart by their order, so one layer may run many times.

``probe`` sends a NaN through the network. Where it arrives is the receptive field; a call that spreads it over the
whole map depends on the window, and is named.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from kin_cli.errors import ModelError
from kin_cli.norm.fused import FusedOps
from kin_cli.norm.layer import Field, MeasuredError, Session, TableNorm
from kin_cli.norm.lookup import Lookup

_FUNCTIONS = {
    F.instance_norm: inspect.signature(F.instance_norm),
    F.group_norm: inspect.signature(F.group_norm),
    F.batch_norm: inspect.signature(F.batch_norm),
}
_NATIVE = {  # torch's own functions have no signature
    torch.instance_norm: (
        *("input", "weight", "bias", "running_mean", "running_var", "use_input_stats", "momentum", "eps"),
        "cudnn_enabled",
    ),
    torch.group_norm: ("input", "num_groups", "weight", "bias", "eps", "cudnn_enabled"),
    torch.batch_norm: (
        *("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
        "cudnn_enabled",
    ),
}
_SPREAD, _LOCAL = 0.99, 0.5  # fraction of NaN behind a call that spreads it, and the most in front of one
_MAX_STRIP_PX = 4096
_CONVOLUTIONS = {  # names of the parameters behind input, weight and bias
    F.conv2d: ("stride", "padding", "dilation", "groups"),
    F.conv_transpose2d: ("stride", "padding", "output_padding", "groups", "dilation"),
}
_ALONE = {"groups": 1}  # one channel in place of all
_HALF = 0.5
_TAKES_PART = {"__getitem__", "chunk", "split", "narrow", "unbind", "select", "index_select", "tensor_split", "unfold"}


@dataclass(frozen=True)
class NormCall:
    """A call that normalizes every channel of one image ``x`` (1, C, H, W) by the statistics of its own pixels."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    @classmethod
    def of(cls, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NormCall | None:
        """What a call of torch normalizes; None if it does something else, or uses stored statistics."""
        try:
            signature = _FUNCTIONS.get(func)
            names = _NATIVE.get(func)
        except TypeError:  # not hashable
            return None
        if signature is not None:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
        elif names is not None:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
        else:
            return None
        x = given["input"]
        if not isinstance(x, Tensor) or x.dim() != 4 or len(x) != 1:
            return None
        if func in (F.group_norm, torch.group_norm):
            own = given["num_groups"] == x.shape[1]
        else:
            own = bool(given.get("use_input_stats", given.get("training", False)))
        return cls(x, given.get("weight"), given.get("bias"), float(given.get("eps", 1e-5))) if own else None


@dataclass
class Trace:
    """What one forward of a network did.

    ``sites`` are its calls of a norm as (name of the layer, channels); ``last`` the name of the last function;
    ``smallest`` the least side of a feature map of more than one pixel; ``peak_bytes`` the most memory that the
    feature maps held together. ``spreaders`` are the layers that depend on the whole window, with the functions.
    """

    sites: list[tuple[str, int]] = field(default_factory=list)
    last: str = ""
    smallest: int = 1 << 30
    peak_bytes: int = 0
    spreaders: dict[str, dict[str, None]] = field(default_factory=dict)
    _alive: dict[int, list[int]] = field(default_factory=dict)  # users and bytes of each memory block

    def hold(self, tensor: Tensor) -> None:
        """Count the memory of a tensor until it is gone."""
        block = tensor.untyped_storage()
        address = block.data_ptr()
        self._alive.setdefault(address, [0, block.nbytes()])[0] += 1
        weakref.finalize(tensor, self._release, address)
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._alive.values()))

    def _release(self, address: int) -> None:
        self._alive[address][0] -= 1
        if not self._alive[address][0]:
            del self._alive[address]


class _Calls(TorchFunctionMode):
    """Sees every call of torch in one forward and gives the calls of a norm to ``normalize``."""

    def __init__(
        self,
        normalize: Callable[[NormCall, int], Tensor] | None,
        *,
        trace: Trace | None = None,
        names: Callable[[], str] = lambda: "",
        probes: bool = False,
    ) -> None:
        super().__init__()
        self._normalize, self._trace, self._names, self._probes = normalize, trace, names, probes
        self._count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = NormCall.of(func, args, kwargs)
        if call is not None:
            number, self._count = self._count, self._count + 1
            if self._trace is not None and not self._probes:
                self._trace.sites.append((self._names(), call.x.shape[1]))
            if self._normalize is not None:
                return self._normalize(call, number)
        if self._probes and func in _CONVOLUTIONS and (made := _footprint(func, args, kwargs)) is not None:
            return made
        result = func(*args, **kwargs)
        if self._trace is not None:
            self._see(func, result)
            if self._probes:
                return self._probed(func, args, kwargs, result)
        return result

    def _see(self, func: Any, result: Any) -> None:
        assert self._trace is not None
        if isinstance(result, Tensor):
            self._trace.last = getattr(func, "__name__", str(func))
            if not self._probes:
                self._trace.hold(result)
            if result.dim() == 4 and min(result.shape[2:]) > 1:
                self._trace.smallest = min(self._trace.smallest, *result.shape[2:])

    def _probed(self, func: Any, args: Any, kwargs: Any, result: Any) -> Any:
        """The result, with the NaN only where it would be without the statistics of the window."""
        assert self._trace is not None
        name = getattr(func, "__name__", "")
        before = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if _floating(leaf)]
        after = [leaf for leaf in pytree.tree_leaves(result) if _floating(leaf)]
        if name in _TAKES_PART or name.endswith("_") or not before or not after:
            return result
        most = max(_broken(tensor) for tensor in before)
        if not 0 < most < _LOCAL or max(_broken(tensor) for tensor in after) < _SPREAD:
            return result
        self._trace.spreaders.setdefault(self._names() or "net", {})[name] = None
        whole = pytree.tree_map(lambda leaf: leaf.nan_to_num() if _floating(leaf) else leaf, (args, kwargs))
        clean = func(*whole[0], **whole[1])
        source = max(before, key=_broken)
        same = isinstance(clean, Tensor) and clean.shape == source.shape
        return clean.masked_fill(source.isnan(), float("nan")) if same else clean


def _footprint(func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """What a convolution makes of the NaN in its input, and some numbers elsewhere; a hundredth of its work."""
    x, weight = (*args, kwargs.get("input"), kwargs.get("weight"))[:2]
    if not isinstance(x, Tensor) or x.dim() != 4 or not isinstance(weight, Tensor):
        return None
    rest = dict(zip(_CONVOLUTIONS[func], args[3:], strict=False))
    rest |= {name: value for name, value in kwargs.items() if name in _CONVOLUTIONS[func]}
    channels = weight.shape[0] if func is F.conv2d else weight.shape[1] * rest.get("groups", 1)
    hit = func(x.isnan().any(dim=1, keepdim=True).float(), torch.ones(1, 1, *weight.shape[2:]), **rest | _ALONE)
    some = torch.rand(1, channels, *hit.shape[2:], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    return some.masked_fill(hit > _HALF, float("nan"))


def _floating(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() > 0


def _broken(tensor: Tensor) -> float:
    return float(tensor.isnan().float().mean())


class CallNetwork:
    """A network whose calls of a norm take their statistics from one table; see ``exchange.TableNetwork``.

    Images run one at a time. Not thread-safe. The module itself is left as it is, and runs as its author wrote it:
    nothing is fused, and no memory layout is changed.
    """

    def __init__(
        self, module: nn.Module, sites: list[tuple[str, int]], *, eps: float | None = None, correction: int = 0
    ) -> None:
        self.module, self.layers = module, sites
        self.channels = sum(channels for _, channels in sites)
        self._session, self._eps = Session(last=len(sites) - 1), eps
        self._norms: list[TableNorm] = []
        first = 0
        for position, (_, channels) in enumerate(sites):
            norm = TableNorm(nn.InstanceNorm2d(channels), self._session, position=position, first=first)
            norm.correction = correction
            self._norms.append(norm)
            first += channels

    def use(self, ops: FusedOps) -> None:
        """Set the implementation of the fused operations."""
        self._session.ops = ops

    @torch.inference_mode()
    def measure(self, x: Tensor) -> Tensor:
        """Means and standard deviations of each sample of a batch (B, 3, H, W): (B, 2, ΣC) float32 (Eq. 3-4)."""
        return torch.cat([self._measured(sample) for sample in torch.split(x, 1)])

    @torch.inference_mode()
    def apply(self, x: Tensor, field: Field) -> Tensor:
        """Run the network on a batch (B, 3, H, W), normalized with the field's statistics (Eq. 7): the same shape."""
        parts = zip(torch.split(x, 1), torch.split(field.stats, 1), strict=True)
        return torch.cat([self._applied(sample, Field(s, field.lookup, field.patches)) for sample, s in parts])

    @torch.inference_mode()
    def applied_uniform(self, x: Tensor, stats: Tensor) -> Tensor:
        """Run on one image (1, 3, H, W), with the statistics (1, 2, ΣC) of some image everywhere."""
        return self._applied(x, _uniform(stats))

    @torch.inference_mode()
    def probed(self, x: Tensor, stats: Tensor, trace: Trace, names: Callable[[], str]) -> Tensor:
        """Run on one image (1, 3, H, W) with NaN in it, with the statistics (1, 2, ΣC) of some image everywhere."""
        return self._applied(x, _uniform(stats), trace=trace, names=names)

    def _measured(self, x: Tensor) -> Tensor:
        if not self.layers:
            return x.new_zeros((1, 2, 0), dtype=torch.float32)
        session = self._session
        session.begin(None)
        session.collected.clear()
        with suppress(MeasuredError), _Calls(self._normalize):
            self.module(x)
        if len(session.collected) < len(self.layers):
            raise _other_order()
        return torch.cat([session.collected[position] for position in range(len(self.layers))], dim=2)

    def _applied(
        self, x: Tensor, field: Field, trace: Trace | None = None, names: Callable[[], str] = lambda: ""
    ) -> Tensor:
        self._session.begin(field)
        try:
            with _Calls(self._normalize, trace=trace, names=names, probes=trace is not None):
                out: Tensor = self.module(x)
        finally:
            self._session.begin(None)
        return out

    def _normalize(self, call: NormCall, number: int) -> Tensor:
        if number >= len(self._norms) or self._norms[number].channels != call.x.shape[1]:
            raise _other_order()
        norm = self._norms[number]
        norm.weight, norm.bias = call.weight, call.bias  # type: ignore[assignment]  # tensors, of AdaIN new each time
        norm.eps = call.eps if self._eps is None else self._eps
        made: Tensor = norm(call.x)
        return made


def _uniform(stats: Tensor) -> Field:
    mean, std = stats.unbind(1)
    table = torch.stack([mean, 1 / std.clamp_min(1e-12)], dim=1)[:, None, None]
    return Field(table, Lookup(4, 0, "nearest"), (1, 1))


def _other_order() -> ModelError:
    return ModelError(
        "the network runs other norm layers for one image than for another: a table cannot hold their statistics",
        "kin needs a forward that does the same for every image of a size",
    )


@contextmanager
def named_layers(module: nn.Module) -> Iterator[Callable[[], str]]:
    """A function that tells the dotted name of the innermost layer that runs at the moment; empty: the network itself.

    Hooks on all layers, removed at the end.
    """
    running: list[str] = []
    hooks: list[Any] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    def leave(*_: object) -> None:
        running.pop()

    for name, layer in module.named_modules():
        if isinstance(layer, torch.jit.ScriptModule):  # takes no hooks, and shows no calls
            continue
        hooks.append(layer.register_forward_pre_hook(enter(name)))
        hooks.append(layer.register_forward_hook(leave))
    try:
        yield lambda: running[-1] if running else ""
    finally:
        for hook in hooks:
            hook.remove()


def traced(module: nn.Module, x: Tensor) -> tuple[Tensor, Trace]:
    """Run the network's own forward on one image (1, 3, H, W) and return its result and what it did."""
    trace = Trace()
    with torch.inference_mode(), named_layers(module) as names, _Calls(None, trace=trace, names=names):
        out: Tensor = module(x)
    return out, trace


def norm_calls(run: Callable[[], object]) -> int:
    """How many calls of a norm are made while ``run`` runs."""
    trace = Trace()
    with torch.inference_mode(), _Calls(None, trace=trace):
        run()
    return len(trace.sites)


@dataclass(frozen=True)
class Reach:
    """How far a network looks: ``radius_px`` of its receptive field, None if it cannot be measured.

    ``spreaders`` names the layers that depend on the whole window, each with the functions of torch that do.
    """

    radius_px: int | None
    spreaders: tuple[str, ...]


def probe(network: CallNetwork, *, side: int, stride: int) -> Reach:
    """Measure how far a network looks, and name what in it depends on the whole window.

    A column of ``stride`` broken pixels (NaN) is put into strips that are longer and longer, until no broken output
    pixel reaches an end. NaN survives every operation, so weights do not matter. ``side`` is a side of a square that
    the network takes. Memory bound: the network's features of ``side`` · 4096 px.
    """
    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    stats = network.measure(2 * noise - 1)
    spreaders: dict[str, dict[str, None]] = {}
    radius: int | None = 0
    for upright in (False, True) if _has_oblong_kernels(network.module) else (False,):
        found = _strip_radius(network, stats, side=side, stride=stride, upright=upright, spreaders=spreaders)
        radius = None if radius is None or found is None else max(radius, found)
    return Reach(radius, tuple(f"{name} ({', '.join(functions)})" for name, functions in spreaders.items()))


def _strip_radius(
    network: CallNetwork, stats: Tensor, *, side: int, stride: int, upright: bool, spreaders: dict[str, dict[str, None]]
) -> int | None:
    length = side
    while 2 * length <= max(_MAX_STRIP_PX, 2 * side):
        length *= 2
        trace = Trace()
        strip = torch.zeros(1, 3, side, length)
        middle = length // 2 // stride * stride
        strip[:, :, side // 2, middle : middle + stride] = float("nan")
        try:
            with named_layers(network.module) as names:
                out = network.probed(strip.mT.contiguous() if upright else strip, stats, trace, names)
        except ModelError:  # a network for squares, or for one size
            return None
        for name, functions in trace.spreaders.items():
            spreaders.setdefault(name, {}).update(functions)
        hit = out.isnan().any(dim=1)[0].any(dim=1 if upright else 0).nonzero().flatten()
        if not len(hit):
            return 0
        first, last = int(hit[0]), int(hit[-1])
        if first > 0 and last < length - 1:
            return max(middle + stride - 1 - first, last - middle, 0)
    return None


def _has_oblong_kernels(module: nn.Module) -> bool:
    sizes = (layer.kernel_size for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d))
    return any(size[0] != size[1] for size in sizes)
