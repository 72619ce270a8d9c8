"""Arrays to a device and back, beside its work: pinned memory, and a stream for each direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Transfer:
    """Copies that a device makes while it computes; on a CPU there is nothing to copy.

    Both methods return at once and hand out a function. ``send``'s is called by whoever launches the work, before it;
    ``fetch``'s waits for the results, and lets other threads launch meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._there: torch.cuda.Stream | None = None
        self._back: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._there = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._back = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, arrays: Sequence[NDArray[Any]]) -> Callable[[], Tensor]:
        """Arrays of one shape and dtype as one tensor, stacked along a new first axis."""
        if self._there is None:
            stacked = torch.from_numpy(np.stack(arrays) if len(arrays) > 1 else np.ascontiguousarray(arrays[0])[None])
            return lambda: stacked
        stream = self._there
        shape, kind = (len(arrays), *arrays[0].shape), torch.from_numpy(arrays[0][:0]).dtype
        host = torch.empty(shape, dtype=kind, pin_memory=True)
        np.stack(arrays, out=host.numpy())
        with torch.cuda.stream(stream):
            sent = host.to(self._device, non_blocking=True)
            arrived = stream.record_event()

        def ready() -> Tensor:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(arrived)
            sent.record_stream(computing)  # or its memory is given to the next copy while it is still read
            return sent

        return ready

    def fetch(self, made: Tensor) -> Callable[[], NDArray[Any]]:
        """A tensor, launched by the caller on the device's current stream, as an array of its own."""
        if self._back is None:
            return made.numpy
        stream, computed = self._back, torch.cuda.current_stream(self._device).record_event()
        host = torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
        with torch.cuda.stream(stream):
            stream.wait_event(computed)
            host.copy_(made, non_blocking=True)
            made.record_stream(stream)
            done = stream.record_event()

        def wait() -> NDArray[Any]:
            done.synchronize()
            result: NDArray[Any] = host.numpy().copy()  # pinned memory is scarce, and results may be kept for long
            return result

        return wait
