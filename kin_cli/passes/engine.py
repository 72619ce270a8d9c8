"""Generators on devices: uint8 images in, statistics or uint8 images out.

The way of a batch: images (B, H, W, 3) uint8 → pinned host memory → device (``Transfer.send``, a stream of its own)
→ (B, 3, H, W) in [-1, 1] → network → (B, 2, ΣC) float32 or (B, H', W', 3) uint8 → pinned host memory → arrays
(``Transfer.fetch``, another stream). ``Engine`` does this on one device, ``EnginePool`` on several.
"""

from __future__ import annotations

import copy
from collections import abc
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from kin_cli.concurrency import prefetch
from kin_cli.errors import DeviceError, is_out_of_memory, lost_device
from kin_cli.geometry import AnyArray, Floats, Mask, Pixels
from kin_cli.models.calls import CallNetwork, traced
from kin_cli.models.checkpoint import Generator
from kin_cli.models.exchange import TableNetwork, exchange_norms
from kin_cli.models.named import FULL_RANGE
from kin_cli.norm.gpu import KernelOps, checked
from kin_cli.norm.layer import Field
from kin_cli.norm.lookup import Lookup
from kin_cli.passes.devices import DTYPES, FAST_DEVICES, Precision
from kin_cli.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

# Tensor cores read 8 channels at a time. Of the first convolution, 7×7 from 3 channels, this makes 2.7 times the work,
# 2.6 % of a whole pass at width 64; benchmarks/ends.py compares it with the alternatives.
_STEM_CHANNELS = 8
_LANES = {"cpu": 1, "cuda": 2}  # batches at a time: a GPU computes one while the results of another are copied


@dataclass(frozen=True)
class Execution:
    """How both passes run: engines, patches or windows per batch, threads on the host, and where to report progress."""

    engines: EnginePool
    batch: int
    workers: int
    progress: Progress


class Engine:
    """A generator with table norms on one device. Threads may share it: one computes, another waits for its results.

    ``kernels`` uses those of ``norm.gpu`` if they work on the device; else ``note`` is told why. ``batch`` is the
    number of images that every batch on a GPU has: smaller ones are filled up, since convolutions may sum in
    another order for another batch, and the bytes of the output would depend on it. None: batches stay as they are.

    If a batch does not fit the device's memory, it runs in two halves, and so on; later batches are cut to the size
    that did fit. On a CPU images always run one at a time.

    Memory bound: the network's activations for one batch, and the pixels of one more batch for each thread.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        device: torch.device,
        precision: Precision,
        correction: int = 0,
        eps: float | None = None,
        kernels: bool = False,
        batch: int | None = None,
    ) -> None:
        if device.type == "cuda":
            # the fastest algorithm of the moment, or sums by atomics, would give other bytes in every run
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
            if precision == "fp32":
                torch.backends.cudnn.allow_tf32 = False  # the default rounds inputs of convolutions to 10 bits
        self.device, self._dtype = device, DTYPES[precision]
        self._note: Callable[[str], None] = lambda _message: None
        self._remark: str | None = None
        network = _exchanged(generator, device, eps=eps, correction=correction)
        own = generator.sites is not None and precision == "fp32"  # some compute in float64 at places
        network.module.to(device=device, dtype=None if own else self._dtype)
        self._format, self._kernels = torch.contiguous_format, None
        if isinstance(network, TableNetwork):
            self._format, self._kernels = torch.channels_last, self._checked_kernels() if kernels else None
            if self._kernels is not None:
                network.use(self._kernels, in_channels=_STEM_CHANNELS)
            network.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs
        self._range = generator.input_range
        self._network, self._transfer, self._turn = network, Transfer(device), Lock()
        self.channels, self.layers, self.stride = network.channels, network.layers, generator.stride
        # on a CPU batches gain nothing
        self._batch, self._batch_limit = batch, 1 << 30 if device.type == "cuda" else 1
        self._copy_limit = 1 << 30

    @property
    def note(self) -> Callable[[str], None]:
        """Called with messages for the user."""
        return self._note

    @note.setter
    def note(self, tell: Callable[[str], None]) -> None:
        self._note, remark, self._remark = tell, self._remark, None
        if remark is not None:
            tell(remark)

    def measure(self, images: Sequence[Pixels], *, alone: bool = False) -> Floats:
        """Means and standard deviations of images (H, W, 3) of one size: (B, 2, ΣC) float32.

        ``alone``: no other batch will have this size, so that there is no need to fill it up. Raises ``DeviceError`` if
        a single image does not fit, ``LostDeviceError`` if the device fails.
        """
        made = self._copied_in_parts(len(images), lambda part: self._measure(images[part], alone=alone))
        return made[0] if len(made) == 1 else np.concatenate(made)

    def _measure(self, images: Sequence[Pixels], *, alone: bool) -> Floats:
        sent = self._transfer.send(images)
        with self._turn, self._current_device():
            pixels = sent()

            def work(part: slice, size: int) -> Tensor:
                return self._network.measure(self._to_input(_filled(pixels[part], size)))[: part.stop - part.start]

            made = self._in_parts(len(images), len(images) if alone else self._batch, work)
            fetch = self._transfer.fetch(made)
        return fetch()

    def apply(self, images: Sequence[Pixels], stats: Floats, lookup: Lookup) -> list[Pixels]:
        """Translate windows; the results (H - 2 halo, W - 2 halo, 3) have no halo.

        images: windows (H, W, 3) of one size, halo included; stats: (B, r, c, 2, ΣC), means and scales of the cells
        around each window, or (B, 1, 1, 2, ΣC) if they are uniform.
        """
        return self.apply_checked(images, stats, lookup)[0]

    def apply_checked(self, images: Sequence[Pixels], stats: Floats, lookup: Lookup) -> tuple[list[Pixels], Mask]:
        """What ``apply`` returns, and for each patch whether all its pixels were finite numbers: bool (B, rows, cols).

        Numbers that are not finite become black or white. The second result is fetched with the first: no extra wait.
        Raises what ``measure`` does.
        """
        made = self._copied_in_parts(len(images), lambda part: self._apply(images[part], stats[part], lookup))
        return [pixels for found, _ in made for pixels in found], np.concatenate([finite for _, finite in made])

    def _apply(self, images: Sequence[Pixels], stats: Floats, lookup: Lookup) -> tuple[list[Pixels], Mask]:
        halo, (height, width) = lookup.halo_px, images[0].shape[:2]
        patches = ((height - 2 * halo) // lookup.patch_px, (width - 2 * halo) // lookup.patch_px)
        sent, table = self._transfer.send(images), self._transfer.send([stats])
        checked: list[Tensor] = []

        def translate(part: slice, size: int) -> Tensor:
            field = Field(_filled(statistics[part], size), lookup, patches)
            y = self._network.apply(self._to_input(_filled(pixels[part], size)), field)[: part.stop - part.start]
            rest = (y.shape[2] - patches[0] * lookup.patch_px) // 2  # halo that the network has not consumed
            y = y[:, :, rest : y.shape[2] - rest, rest : y.shape[3] - rest]
            if self._range != FULL_RANGE:
                low, high = self._range
                y = (y.float() - low) * (2 / (high - low)) - 1
            levels, finite = self._to_bytes(y, lookup)
            checked.append(finite)
            return levels

        with self._turn, self._current_device():
            pixels, statistics = sent(), table()[0]
            fetch = self._transfer.fetch(self._in_parts(len(images), self._batch, translate))
            fetch_checked = self._transfer.fetch(torch.cat(checked))
        finite: Mask = fetch_checked()
        return list(fetch()), finite

    def _checked_kernels(self) -> KernelOps | None:
        def remember(why: str) -> None:
            self._remark = why

        with self._current_device():
            return checked(self.device, told=remember)

    def _current_device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _in_parts(self, count: int, size: int | None, work: Callable[[slice, int], Tensor]) -> Tensor:
        """Call ``work`` on slices of ``count`` images and join the results; halve the slices if memory runs out.

        The second argument of ``work`` is the size to which a slice is filled up: ``size``, if memory allows.
        """
        made: list[Tensor] = []
        first = 0
        while first < count:
            filled = min(self._batch_limit, size or count)
            part = slice(first, min(first + filled, count))
            try:
                made.append(work(part, filled))
                first = part.stop
                continue
            except Exception as error:
                self._raise_unless_memory(error)
            self._halve(filled)  # the error holds the frames of what failed, and so their memory, until here
        return made[0] if len(made) == 1 else torch.cat(made)

    def _copied_in_parts(self, count: int, work: Callable[[slice], Result]) -> list[Result]:
        """Call ``work``, copies to the device and back included, on slices of ``count`` images.

        The slices are halved if memory runs out, for later batches, too.
        """
        made: list[Result] = []
        first = 0
        while first < count:
            part = slice(first, min(first + self._copy_limit, count))
            try:
                made.append(work(part))
                first = part.stop
                continue
            except Exception as error:
                self._raise_unless_memory(error)
            self._copy_limit = self._halve(part.stop - part.start)
        return made

    def _raise_unless_memory(self, error: Exception) -> None:
        """Raise an error, in words if it is that the device failed, unless it is that memory ran out."""
        if is_out_of_memory(error):
            return
        raise lost_device(error, str(self.device)) or error

    def _halve(self, count: int) -> int:
        """Go on with batches of half of ``count`` images; return their size."""
        if count == 1:
            raise DeviceError(
                f"{self.device}: out of memory for a single window", "a smaller --window, or --device cpu"
            ) from None
        half = count // 2
        self._batch_limit = min(self._batch_limit, half)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.note(f"{self.device}: out of memory for {count} windows at once, going on with {half}")
        return half

    def _to_input(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, C, H, W) in the generator's range, [-1, 1] for most, in the engine's dtype.

        C is 3, or more for the kernels.
        """
        low, high = self._range
        if self._kernels is not None:
            channels = self._network.in_channels if isinstance(self._network, TableNetwork) else 3
            return self._kernels.to_input(images, channels=channels, dtype=self._dtype, black=low, white=high)
        x = images.permute(0, 3, 1, 2).to(torch.float32).mul_((high - low) / 255).add_(low)
        return x.to(dtype=self._dtype, memory_format=self._format)

    def _to_bytes(self, y: Tensor, lookup: Lookup) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] to (B, H, W, 3) uint8, and whether each patch is finite: bool (B, rows, cols)."""
        if self._kernels is not None:
            return self._kernels.to_bytes(y, lookup.patch_px)
        y = y.float()
        return _to_bytes(y), _finite_patches(y, lookup.patch_px)


def _exchanged(
    generator: Generator, device: torch.device, *, eps: float | None, correction: int
) -> TableNetwork | CallNetwork:
    """A copy of the generator whose norms take their statistics from a table."""
    module = copy.deepcopy(generator.module)
    # 16 pixels of the deepest feature map: enough for reflection padding in every known architecture
    side = generator.side or max(64, 2 * generator.stride)
    sites = generator.sites
    if sites is None and device.type not in FAST_DEVICES:
        sites = traced(module, torch.zeros(1, 3, side, side))[1].sites
    if sites is not None:
        return CallNetwork(module, sites, eps=eps, correction=correction)
    reach = None if generator.spec is None else generator.halo
    return exchange_norms(module, side=side, eps=eps, correction=correction, reach_px=reach)


def _filled(images: Tensor, size: int) -> Tensor:
    """The images (B, …) followed by copies of the last one, ``size`` in all."""
    missing = size - len(images)
    return images if missing <= 0 else torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])


def _finite_patches(y: Tensor, patch_px: int) -> Tensor:
    """Whether all numbers of each patch are finite: (B, 3, H, W) to bool (B, rows, cols), by the sums of patches."""
    batch, channels, height, width = y.shape
    cells = y.reshape(batch, channels, height // patch_px, patch_px, width // patch_px, patch_px)
    return torch.isfinite(cells.sum((1, 3, 5)))


def _to_bytes(y: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] to (B, H, W, 3) uint8, rounded half up as in the paper's released code; NaN becomes 0."""
    levels = y.float().clamp(-1, 1).mul_(127.5).add_(128).nan_to_num_(0)
    return levels.clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class EnginePool:
    """Engines with the same generator and settings, one for each device.

    Each batch goes to an engine that is free; results are returned in the order of the batches, whichever engine is
    done first. For devices of one kind the results do not depend on which engine takes a batch.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = tuple(engines)
        self.channels, self.stride = engines[0].channels, engines[0].stride
        self._lanes = [engine for engine in engines for _ in range(_LANES.get(engine.device.type, 1))]

    @property
    def first(self) -> Engine:
        """The engine of the first device, for work that is done once."""
        return self.engines[0]

    def run(
        self, work: Callable[[Engine, Item], Result], batches: Iterable[Item], *, progress: Progress
    ) -> abc.Generator[Result]:
        """Yield work(engine, batch) for every batch, in the order of ``batches``.

        Memory bound: two batches and their results for each lane; a GPU has two lanes, a CPU one.
        """
        free: SimpleQueue[Engine] = SimpleQueue()
        for engine in self._lanes:
            engine.note = progress.note
            free.put(engine)

        def with_free_engine(batch: Item) -> Result:
            engine = free.get()
            try:
                return work(engine, batch)
            finally:
                free.put(engine)

        return prefetch(with_free_engine, batches, workers=len(self._lanes), ahead=2 * len(self._lanes))


class Transfer:
    """Copies to a device and back while it computes: pinned memory, and one stream per direction. No copies on a CPU.

    Both methods start the copy and return a callable at once. Call that of ``send`` before launching the work; call
    that of ``fetch`` after releasing the device, to wait for the results while other threads launch.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._to_device: torch.cuda.Stream | None = None
        self._to_host: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._to_device = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._to_host = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, arrays: Sequence[AnyArray]) -> Callable[[], Tensor]:
        """Stack arrays of one shape and dtype along a new first axis, as one tensor on the device."""
        if self._to_device is None:
            stacked = torch.from_numpy(np.stack(arrays) if len(arrays) > 1 else np.ascontiguousarray(arrays[0])[None])
            return lambda: stacked.to(self._device)
        stream = self._to_device
        shape, kind = (len(arrays), *arrays[0].shape), torch.from_numpy(arrays[0][:0]).dtype
        host = torch.empty(shape, dtype=kind, pin_memory=True)
        np.stack(arrays, out=host.numpy())
        with torch.cuda.stream(stream):
            sent = host.to(self._device, non_blocking=True)
            arrived = stream.record_event()

        def ready() -> Tensor:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(arrived)
            sent.record_stream(computing)  # else its memory would be reused for the next copy while it is still read
            return sent

        return ready

    def fetch(self, made: Tensor) -> Callable[[], AnyArray]:
        """Copy a tensor, computed on the device's current stream, to an array that owns its memory."""
        if self._to_host is None:
            return made.cpu().numpy
        stream, computed = self._to_host, torch.cuda.current_stream(self._device).record_event()
        host = torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
        with torch.cuda.stream(stream):
            stream.wait_event(computed)
            host.copy_(made, non_blocking=True)
            made.record_stream(stream)
            done = stream.record_event()

        def wait() -> AnyArray:
            done.synchronize()
            result: AnyArray = (
                host.numpy().copy()
            )  # frees the pinned memory, which is scarce: results may be kept for long
            return result

        return wait
