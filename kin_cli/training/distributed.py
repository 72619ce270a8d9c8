"""Training in one process, or in several that ``torchrun`` started (DistributedDataParallel)."""

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

_TIMEOUT = timedelta(hours=2)  # while rank 0 surveys the slides or evaluates, the other processes wait


@dataclass(frozen=True)
class Rank:
    """One of ``world`` processes, number ``index`` from 0. ``bf16`` runs networks under autocast."""

    device: torch.device
    bf16: bool
    index: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.index == 0

    @property
    def memory_format(self) -> torch.memory_format:
        """The faster one: channels last on a GPU and for bf16 on a CPU."""
        last = self.device.type == "cuda" or self.bf16
        return torch.channels_last if last else torch.contiguous_format

    def place(self, framework: Framework) -> None:
        """Move all networks to the device, in place."""
        for module in (*framework.networks.values(), *framework.fixed):
            module.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload]

    def wrap(self, phase: Phase) -> nn.Module:
        """The phase's objective, made to average gradients over all processes."""
        return phase.objective if self.world == 1 else DistributedDataParallel(phase.objective)

    def terms(self, objective: nn.Module, batch: PatchBatch) -> dict[str, Tensor]:
        """The terms of an objective for a batch, under autocast with bf16."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return cast(dict[str, Tensor], objective(batch))

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def this_rank(settings: TrainSettings) -> Iterator[Rank]:
    """Join the processes that ``torchrun`` started, if it did, and give this one's rank.

    Raises:
        DeviceError: The device is not available.
    """
    world, index = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
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
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield Rank(device, bf16, index, world)
    finally:
        dist.destroy_process_group()


def _bf16_is_fast(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def unsynchronised(objective: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Context in which gradients are averaged over processes only for the ``last`` of the accumulated batches."""
    if last or not isinstance(objective, DistributedDataParallel):
        return nullcontext()
    return cast(AbstractContextManager[None], objective.no_sync())
