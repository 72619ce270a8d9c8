"""The device that runs a generator: uint8 images in, statistics or uint8 images out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kin_cli.concurrency import prefetch
from kin_cli.errors import DeviceError
from kin_cli.models.checkpoint import Generator
from kin_cli.models.exchange import exchange_norms
from kin_cli.norm.fused import CompiledOps
from kin_cli.norm.layer import Field
from kin_cli.norm.lookup import Lookup
from kin_cli.passes.devices import DTYPES, Precision
from kin_cli.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

_LANES = {"cpu": 1, "cuda": 2}  # on a GPU one batch is launched while the results of another are on their way


# FROM passes.engine: The device that runs a generator: uint8 images in, statistics or uint8 images out.


@dataclass(frozen=True)
class Execution:
    """What carries out both passes: engines, windows or patches per batch, threads on the host, and who watches."""

    engines: EnginePool
    batch: int
    workers: int
    progress: Progress


class Engine:
    """A patched generator on a device. Threads may share it: one launches while another waits for its results.

    ``compiled`` makes fused kernels with torch's compiler. ``tell`` is called with what the user should know.

    Memory bound: the network's activations for one batch of windows, and the pixels of one more for each thread.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        device: torch.device,
        precision: Precision,
        correction: int = 0,
        eps: float | None = None,
        compiled: bool = False,
    ) -> None:
        if device.type == "cuda" and precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # torch's default for convolutions rounds to 10 bits
        self.device, self._dtype = device, DTYPES[precision]
        self.tell: Callable[[str], None] = lambda _message: None
        # 16 patches of the deepest feature map: enough for reflection padding in every known layout.
        side = max(64, 2 * generator.stride)
        module = copy.deepcopy(generator.module)
        network = exchange_norms(module, side=side, eps=eps, correction=correction, reach_px=generator.halo)
        network.module.to(device=device, dtype=self._dtype)
        network.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs
        if compiled:
            network.use(CompiledOps(lambda why: self.tell(f"torch cannot compile here and goes on without it: {why}")))
        self._network, self._transfer, self._turn = network, Transfer(device), Lock()
        self.channels, self.layers, self.stride = network.channels, network.layers, generator.stride
        # On a CPU a batch gains nothing, and a convolution may add in another order for another batch size, which
        # would make the bytes of the output depend on it.
        self._most = 1 if device.type == "cpu" else 1 << 30

    def measure(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Statistics of each image (H, W, 3), all of one size: (B, 2, ΣC), means and standard deviations."""
        sent = self._transfer.send(images)
        with self._turn, self._here():
            pixels = sent()
            made = self._in_parts(len(images), lambda part: self._network.measure(self._to_input(pixels[part])))
            fetch = self._transfer.fetch(made)
        return fetch()

    def apply(
        self, images: Sequence[NDArray[np.uint8]], stats: NDArray[np.float32], lookup: Lookup
    ) -> list[NDArray[np.uint8]]:
        """Translated windows without their halo.

        images: windows (H, W, 3) of one size, halo included; stats: (B, r, c, 2, ΣC), what each window reads, or
        (B, 1, 1, 2, ΣC) where the statistics are the same everywhere.
        """
        halo, (height, width) = lookup.halo_px, images[0].shape[:2]
        patches = ((height - 2 * halo) // lookup.patch_px, (width - 2 * halo) // lookup.patch_px)
        sent, table = self._transfer.send(images), self._transfer.send([stats])

        def translate(part: slice) -> Tensor:
            y = self._network.apply(self._to_input(pixels[part]), Field(statistics[part], lookup, patches))
            left = (y.shape[2] - patches[0] * lookup.patch_px) // 2  # of the halo
            return _to_bytes(y[:, :, left : y.shape[2] - left, left : y.shape[3] - left])

        with self._turn, self._here():
            pixels, statistics = sent(), table()[0]
            fetch = self._transfer.fetch(self._in_parts(len(images), translate))
        return list(fetch())

    def _here(self) -> AbstractContextManager[object]:
        return nullcontext() if self.device.type == "cpu" else torch.cuda.device(self.device)

    def _in_parts(self, count: int, work: Callable[[slice], Tensor]) -> Tensor:
        """``work`` on as many of ``count`` images at once as memory allows: half of them, where it does not."""
        made: list[Tensor] = []
        first = 0
        while first < count:
            part = slice(first, min(first + self._most, count))
            try:
                made.append(work(part))
                first = part.stop
            except torch.OutOfMemoryError:
                self._halve(part.stop - first)
        return made[0] if len(made) == 1 else torch.cat(made)

    def _halve(self, count: int) -> None:
        if count == 1:
            raise DeviceError(
                f"{self.device}: out of memory for a single window", "a smaller --window, or --device cpu"
            ) from None
        self._most = count // 2
        torch.cuda.empty_cache()
        self.tell(f"{self.device}: out of memory for {count} windows at once, going on with {self._most}")

    def _to_input(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) to [-1, 1] (B, 3, H, W)."""
        x = images.permute(0, 3, 1, 2).to(torch.float32).mul_(2 / 255).sub_(1)
        return x.to(dtype=self._dtype, memory_format=torch.channels_last)


def _to_bytes(y: Tensor) -> Tensor:
    """[-1, 1] (B, 3, H, W) to uint8 (B, H, W, 3), rounded half up as the authors do; NaN becomes 0."""
    grey = y.float().clamp(-1, 1).mul_(127.5).add_(128).nan_to_num_(0)
    return grey.clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


# FROM passes.fleet: The engines of a run: batches are dealt to whichever is free, results come back in order.


class EnginePool:
    """Engines with the same generator and settings, one for each device.

    Which engine takes a batch changes nothing in its results, if the devices are of one kind.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = tuple(engines)
        self.channels, self.stride = engines[0].channels, engines[0].stride
        self._lanes = [engine for engine in engines for _ in range(_LANES[engine.device.type])]

    @property
    def first(self) -> Engine:
        """The engine of the first device, for what is done once."""
        return self.engines[0]

    def run(
        self, work: Callable[[Engine, Item], Result], batches: Iterable[Item], *, progress: Progress
    ) -> Iterator[Result]:
        """``work`` with a free engine for every batch, in order.

        Memory bound: two batches and their results for each lane, of which a GPU has two and a CPU one.
        """
        free: SimpleQueue[Engine] = SimpleQueue()
        for engine in self._lanes:
            engine.tell = progress.note
            free.put(engine)

        def with_free_engine(batch: Item) -> Result:
            engine = free.get()
            try:
                return work(engine, batch)
            finally:
                free.put(engine)

        return prefetch(with_free_engine, batches, workers=len(self._lanes), ahead=2 * len(self._lanes))


# FROM passes.transfer: Arrays to a device and back, beside its work: pinned memory, and a stream for each direction.


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
