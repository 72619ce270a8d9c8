"""InstanceNorm2d → TableNorm in place: what makes any InstanceNorm network measurable and applicable."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from kin_cli.errors import ModelError
from kin_cli.norm.layer import Field, MeasuredError, Session, TableNorm


class PatchedNetwork:
    """A network whose norm layers read one table. Not thread-safe: one forward at a time.

    ``channels`` is ΣC, the channels of all norm layers; a cell of the table is (2, ΣC), layers in the order in which
    the network runs them, as in ``layers`` (name, channels).
    """

    def __init__(self, module: nn.Module, session: Session, layers: list[tuple[str, int]]) -> None:
        self.module, self.layers = module, layers
        self.channels = sum(channels for _, channels in layers)
        self._session = session

    @torch.inference_mode()
    def measure(self, x: Tensor) -> Tensor:
        """Statistics of each sample of a batch (B, 3, H, W): (B, 2, ΣC) float32, means and standard deviations.

        Runs to the last norm layer and no further (Eq. 3-4).
        """
        self._session.current = None
        self._session.collected.clear()
        with suppress(MeasuredError):
            self.module(x)
        collected = self._session.collected
        return torch.cat([collected[position] for position in sorted(collected)], dim=2)

    @torch.inference_mode()
    def apply(self, x: Tensor, field: Field) -> Tensor:
        """The network's output (B, 3, H, W) for a batch, normalised with the field's statistics (Eq. 7)."""
        self._session.current = field
        try:
            out: Tensor = self.module(x)
        finally:
            self._session.current = None
        return out


def patch(
    module: nn.Module, *, side: int = 64, in_channels: int = 3, eps: float | None = None, correction: int = 0
) -> PatchedNetwork:
    """Replace every InstanceNorm2d of a network by a table norm, in place, and put the network in eval mode.

    ``side`` is the extent of a square input that the network accepts: one forward with it finds the order in which the
    layers run. ``eps`` None keeps each layer's own; ``correction`` 0 is the biased variance of InstanceNorm2d, 1 the
    unbiased one of the paper's released code.

    Raises ModelError where there is no InstanceNorm2d, where one keeps running statistics, or where one runs more than
    once in a forward (a table has one entry per layer).
    """
    names = {norm: name for name, norm in module.named_modules() if isinstance(norm, nn.InstanceNorm2d)}
    if not names:
        raise ModelError("the network has no InstanceNorm2d layer", "kernelized instance normalization replaces those")
    for norm, name in names.items():
        if norm.track_running_stats:
            raise ModelError(
                f"norm layer '{name}' keeps running statistics", "train with track_running_stats=False, or drop them"
            )
    module.eval().requires_grad_(False)
    order = _execution_order(module, names, side=side, in_channels=in_channels)
    session, first, layers = Session(last=len(order) - 1), 0, []
    for position, norm in enumerate(order):
        table_norm = TableNorm(norm, session, position=position, first=first)
        table_norm.eps = norm.eps if eps is None else eps
        table_norm.correction = correction
        _replace(module, names[norm], table_norm)
        layers.append((names[norm], norm.num_features))
        first += norm.num_features
    return PatchedNetwork(module, session, layers)


def _execution_order(
    module: nn.Module, names: dict[nn.InstanceNorm2d, str], *, side: int, in_channels: int
) -> list[nn.InstanceNorm2d]:
    ran: list[nn.InstanceNorm2d] = []
    hooks = [norm.register_forward_pre_hook(lambda norm, _: ran.append(norm)) for norm in names]
    first = next(module.parameters())
    try:
        with torch.inference_mode():
            module(torch.zeros(1, in_channels, side, side, dtype=first.dtype, device=first.device))
    finally:
        for hook in hooks:
            hook.remove()
    for norm in ran:
        if ran.count(norm) > 1:
            raise ModelError(f"norm layer '{names[norm]}' runs more than once", "give each place a layer of its own")
    if not ran:
        raise ModelError(
            "no InstanceNorm2d layer of the network runs in a forward", "pass the generator, not a wrapper"
        )
    return ran


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, layer)
