"""InstanceNorm2d → TableNorm in place: what makes any InstanceNorm network measurable and applicable."""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import suppress

import torch
from torch import Tensor, nn

from kin_cli.errors import ModelError
from kin_cli.models import resnet, urust
from kin_cli.models.phases import PhasedConv2d
from kin_cli.models.trace import Link, links
from kin_cli.norm.layer import Field, MeasuredError, Session, TableNorm
from kin_cli.norm.sweep import Finish, Sweep

RESIDUAL_BLOCKS = (resnet.ResidualBlock, urust.ResidualBlock)


class PatchedNetwork:
    """A network whose norm layers read one table. Not thread-safe: one forward at a time.

    ``channels`` is ΣC, the channels of all norm layers; a cell of the table is (2, ΣC), layers in the order in which
    the network runs them, as in ``layers`` (name, channels).
    """

    def __init__(
        self, module: nn.Module, session: Session, layers: list[tuple[str, int]], *, reach_px: int | None
    ) -> None:
        self.module, self.layers = module, layers
        self.channels = sum(channels for _, channels in layers)
        self._session, self._reach_px = session, reach_px

    def use(self, sweep: Sweep) -> None:
        """Finish feature maps that way from now on."""
        self._session.sweep = sweep

    @torch.inference_mode()
    def measure(self, x: Tensor) -> Tensor:
        """Statistics of each sample of a batch (B, 3, H, W): (B, 2, ΣC) float32, means and standard deviations.

        Runs to the last norm layer and no further (Eq. 3-4).
        """
        self._session.begin(None)
        self._session.collected.clear()
        with suppress(MeasuredError):
            self.module(x)
        collected = self._session.collected
        return torch.cat([collected[position] for position in sorted(collected)], dim=2)

    @torch.inference_mode()
    def apply(self, x: Tensor, field: Field) -> Tensor:
        """The network's output (B, 3, h, w) for a batch, normalised with the field's statistics (Eq. 7).

        Smaller than the input by what was used up of a halo, the same on all sides, and never less than the core.
        """
        self._session.begin(field, reach_px=self._reach_px)
        try:
            out: Tensor = self.module(x)
        finally:
            self._session.begin(None)
        return out


def patch(
    module: nn.Module,
    *,
    side: int = 64,
    in_channels: int = 3,
    eps: float | None = None,
    correction: int = 0,
    reach_px: int | None = None,
) -> PatchedNetwork:
    """Replace every InstanceNorm2d of a network by a table norm, in place, and put the network in eval mode.

    What stands around a norm layer and concerns nothing else goes into it: the convolution in front of it, the ReLU and
    the reflection behind it, the addition of a residual block. The last convolution becomes a ``PhasedConv2d``.

    ``side`` is the extent of a square input that the network accepts: one forward with it finds the order in which the
    layers run. ``eps`` None keeps each layer's own; ``correction`` 0 is the biased variance of InstanceNorm2d, 1 the
    unbiased one of the paper's released code. ``reach_px`` is the radius of the receptive field: residual blocks use up
    a halo of at least that, instead of reflecting its border; None keeps every map's size.

    Raises ModelError where there is no InstanceNorm2d, where one keeps running statistics, or where one runs more than
    once in a forward (a table has one entry per layer).
    """
    module.eval().requires_grad_(False)
    names = {layer: name for name, layer in module.named_modules()}
    order = _execution_order(module, names, side=side, in_channels=in_channels)
    session, first, layers = Session(last=len(order) - 1), 0, []
    for position, link in enumerate(order):
        norm = link.norm
        table_norm = TableNorm(norm, session, position=position, first=first)
        table_norm.eps = norm.eps if eps is None else eps
        table_norm.correction = correction
        table_norm.convolution = link.convolution
        pad = 0 if link.pad is None else link.pad.padding[0]
        table_norm.finish = Finish(link.relu is not None, pad, in_place=link.convolution is not None)
        for absorbed in (link.convolution, link.relu, link.pad):
            if absorbed is not None:
                _replace(module, names[absorbed], nn.Identity())
        _replace(module, names[norm], table_norm)
        layers.append((names[norm], norm.num_features))
        first += norm.num_features
    taken = {link.convolution for link in order}
    after = _following(names)
    for layer, name in names.items():
        if isinstance(layer, RESIDUAL_BLOCKS):
            block = TableResidual(layer.body, session, given=layer in after.values(), gives=layer in after)
            _replace(module, name, block)
        elif PhasedConv2d.suits(layer) and layer not in taken:
            _replace(module, name, PhasedConv2d(layer))
    return PatchedNetwork(module, session, layers, reach_px=reach_px)


def _following(names: dict[nn.Module, str]) -> dict[nn.Module, nn.Module]:
    """The residual block behind each residual block that has one."""
    chains = [list(layer) for layer in names if isinstance(layer, nn.Sequential)]
    pairs = [pair for chain in chains for pair in itertools.pairwise(chain)]
    return {a: b for a, b in pairs if isinstance(a, RESIDUAL_BLOCKS) and isinstance(b, RESIDUAL_BLOCKS)}


class TableResidual(nn.Module):
    """x + body(x), added in the sweep of the body's last layer, a table norm.

    The body reflects a border of one pixel before each of its two 3×3 convolutions. The first border is there already
    where x is ``given`` with it, and this block ``gives`` the next one's with its result. Where a halo shrinks there
    are no borders: the result is smaller by two pixels on every side.
    """

    def __init__(self, body: nn.Sequential, session: Session, *, given: bool, gives: bool) -> None:
        super().__init__()
        border, *front, last = body
        assert isinstance(last, TableNorm)
        if gives:
            last.finish = dataclasses.replace(last.finish, pad=1)
        self.border, self.front, self.last = nn.Identity() if given else border, nn.ModuleList(front), last
        self._session, self._given = session, given

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w)."""
        session, bare = self._session, self._session.shrinks
        residual = x[:, :, 2:-2, 2:-2] if bare else x[:, :, 1:-1, 1:-1] if self._given else x
        step = session.stride(x.shape[2]) if bare else 0
        x = x if bare else self.border(x)
        for layer in self.front:
            if isinstance(layer, TableNorm):
                session.margin_px -= step
                x = layer(x, bare=bare)
            elif not (bare and isinstance(layer, nn.ReflectionPad2d)):
                x = layer(x)
        session.margin_px -= step
        out: Tensor = self.last(x, residual=residual, bare=bare)
        return out


def _execution_order(module: nn.Module, names: dict[nn.Module, str], *, side: int, in_channels: int) -> list[Link]:
    norms = [layer for layer in names if isinstance(layer, nn.InstanceNorm2d)]
    if not norms:
        raise ModelError("the network has no InstanceNorm2d layer", "kernelized instance normalization replaces those")
    for norm in norms:
        if norm.track_running_stats:
            raise ModelError(
                f"norm layer '{names[norm]}' keeps running statistics",
                "train with track_running_stats=False, or drop them",
            )
    order = links(module, side=side, in_channels=in_channels)
    ran = [link.norm for link in order]
    for norm in ran:
        if ran.count(norm) > 1:
            raise ModelError(f"norm layer '{names[norm]}' runs more than once", "give each place a layer of its own")
    if not ran:
        raise ModelError(
            "no InstanceNorm2d layer of the network runs in a forward", "pass the generator, not a wrapper"
        )
    return order


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, layer)
