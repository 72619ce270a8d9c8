"""One process or several: torch's DistributedDataParallel where ``torchrun`` started several."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from kin_cli.passes.devices import resolve_device
from kin_cli.training.framework import Framework, PatchBatch, Phase
from kin_cli.training.settings import TrainSettings

_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Rank:
    """This process among ``world``; ``rank`` 0 writes files. ``bf16`` runs networks under autocast."""

    device: torch.device
    bf16: bool
    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels last where it is faster: on a GPU, and for bf16 on a CPU."""
        last = self.device.type == "cuda" or self.bf16
        return torch.channels_last if last else torch.contiguous_format

    def place(self, framework: Framework) -> None:
        """Move all networks to the device, in place."""
        for module in (*framework.networks.values(), *framework.fixed):
            module.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload]

    def wrap(self, phase: Phase, *, unused: bool) -> nn.Module:
        """The phase's objective, averaging gradients over all processes; ``unused`` where some may get none."""
        if self.world == 1:
            return phase.objective
        return DistributedDataParallel(phase.objective, find_unused_parameters=unused)

    def terms(self, objective: nn.Module, batch: PatchBatch) -> dict[str, Tensor]:
        """The terms of an objective, under autocast if asked for."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return cast(dict[str, Tensor], objective(batch))

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def this_rank(settings: TrainSettings) -> Iterator[Rank]:
    """This process as a worker: alone, or as one of those that ``torchrun`` started.

    Raises ``DeviceError`` where the device is not there.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    name = settings.device
    if world > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = resolve_device(name)
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and _bf16_is_fast(device))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield Rank(device, bf16)
        return
    # the others wait while the first evaluates, and at the very beginning while it reads the slides
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Rank(device, bf16, rank, world)
    finally:
        dist.destroy_process_group()


def _bf16_is_fast(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def unsynchronised(objective: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Keep gradients of all but the ``last`` accumulated batch within this process."""
    if last or not isinstance(objective, DistributedDataParallel):
        return nullcontext()
    return cast(AbstractContextManager[None], objective.no_sync())
