"""Fused operations on a GPU, by one Triton kernel each; see ``fused`` for the formula and ``triton_kernels``.

Triton comes with torch's CUDA builds and needs a C compiler and Python's headers. Compiled kernels are kept in a folder
of the user's own in the temporary folder (or in TRITON_CACHE_DIR), so that only the first run on a machine compiles.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sysconfig
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from kin_cli.errors import is_out_of_memory, lost_device
from kin_cli.norm.fused import FieldAxis, Finish, Uniform, Values, Varying

_OLDEST_TRITON = (3, 3)  # comes with torch 2.7
_TILE = 4096  # numbers per program: 32 for each of its 128 threads
_MOST_CHANNELS = 256  # per program of a sweep
_LINE_CHANNELS = 64  # per program that sums
_LEAST_CHUNK, _MOST_CHUNKS = 512, 128  # pixels that one program sums; so many partial sums are joined at once
_NORMS = {type(None): 0, Uniform: 1, Varying: 2}
_OPTIONS = {"enable_fp_fusion": True}  # the default is not that of every version of Triton
_RESIZES = {"": 0, "down": 1, "up": 2, "nearest": 3}


def why_not() -> str | None:
    """What is missing here for the kernels; None if nothing is."""
    try:
        found = str(kernels().triton.__version__)
    except ImportError:
        return "Triton is not installed"
    if tuple(int(number) for number in re.findall(r"\d+", found)[:2]) < _OLDEST_TRITON:
        return f"Triton {found} is too old, {_OLDEST_TRITON[0]}.{_OLDEST_TRITON[1]} is needed"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "there is no C compiler, such as gcc"
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme  # as Triton does, whose launcher needs the header
    if not (Path(sysconfig.get_path("include", scheme)) / "Python.h").exists():
        return "Python.h is missing, which is in python3-dev"
    return None


@lru_cache(maxsize=1)
def kernels() -> ModuleType:
    """The module of the kernels. Raises ``ImportError`` without Triton."""
    if "TRITON_CACHE_DIR" not in os.environ:
        os.environ["TRITON_CACHE_DIR"] = str(_own_folder())
    from kin_cli.norm import triton_kernels

    return triton_kernels


def _own_folder() -> Path:
    """A folder for compiled kernels that nobody else can write to: code in it will run."""
    folder = Path(tempfile.gettempdir()) / f"kin-kernels-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="kin-kernels-"))


class KernelOps:
    """Fused operations by Triton kernels: one kernel each, two for the statistics and for a field with another size.

    A sample's numbers do not depend on the batch. Memory bound: the result.
    """

    folds, adds_bias = False, True

    def __init__(self) -> None:
        self._kernels = kernels()
        self._segments: dict[
            tuple[int, int, int], tuple[FieldAxis, Tensor]
        ] = {}  # the axis is kept: its id is in the key

    def measured(
        self, x: Tensor, *, correction: int, eps: float, offset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See ``FusedOps``."""
        x = x.contiguous(memory_format=torch.channels_last)
        batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
        # by the size of the map alone
        chunk = max(_LEAST_CHUNK, -(-pixels // _MOST_CHUNKS))
        chunks = -(-pixels // chunk)
        block = min(_power(channels), _LINE_CHANNELS)
        blocks = -(-channels // block)
        means, squares = x.new_empty((2, batch, chunks, channels), dtype=torch.float32)
        self._kernels.chunk_moments[chunks, blocks, batch](
            x, means, squares, pixels, chunk, chunks, C=channels, BLOCK_C=block, BLOCK_P=_TILE // block, **_OPTIONS
        )
        stats, scales = x.new_empty((2, batch, 2, channels), dtype=torch.float32)
        self._kernels.join_moments[-(-channels // min(block, 32)), batch](
            stats, scales, means, squares, x if offset is None else offset, pixels, chunk, chunks, correction, eps,
            C=channels, BLOCK_C=min(block, 32), BLOCK_K=_power(chunks), OFFSET=offset is not None, **_OPTIONS,
        )  # fmt: skip
        return stats, scales

    def __call__(self, x: Tensor, values: Values, finish: Finish, *, residual: Tensor | None = None) -> Tensor:
        """See ``FusedOps``. Raises ``RuntimeError`` if the map is too small to be reflected, as torch does."""
        if isinstance(values, Varying) and finish.resize:
            # the cells of a pixel's neighbours may be others than its own
            x = self(x, values, Finish(finish.relu), residual=residual)
            return self(x, None, Finish(pad=finish.pad, resize=finish.resize))
        x, residual = _as_pixels(x), None if residual is None else _as_pixels(residual)
        batch, channels, height, width = x.shape
        out_height, out_width = finish.sides(height, width)
        least = min(height, width) if finish.resize == "down" else min(out_height, out_width) - 2 * finish.pad
        if max(finish.pad, int(finish.resize == "down")) >= least:
            raise RuntimeError(f"Padding size should be less than the input dimension, but got a map {tuple(x.shape)}")
        size = (batch, channels, out_height, out_width)
        out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        block = min(_power(channels), _MOST_CHANNELS)
        across = max(1, _TILE // block)
        tables, steps, count = self._norm_arguments(values, finish, out_width, across, out)
        added = x if residual is None else residual
        self._kernels.sweep[count * -(-channels // block), out_height, batch](
            out, x, added, *tables,
            x.stride(0) // channels, x.stride(2) // channels, added.stride(0) // channels, added.stride(2) // channels,
            height, width, out_height, out_width, *steps,
            C=channels, BLOCK_C=block, BLOCK_W=across, NORM=_NORMS[type(values)],
            WEIGHT=values is not None and values.weight is not None,
            BIAS=values is not None and values.bias is not None,
            OFFSET=values is not None and values.offset is not None,
            RESIDUAL=residual is not None, RELU=finish.relu, RESIZE=_RESIZES[finish.resize], PAD=finish.pad, **_OPTIONS,
        )  # fmt: skip
        return out

    def to_input(
        self, levels: Tensor, *, channels: int, dtype: torch.dtype, black: float = -1.0, white: float = 1.0
    ) -> Tensor:
        """Bytes (B, H, W, 3) to (B, channels, H, W) channels-last: three channels from black to white, the others 0."""
        batch, height, width, _ = levels.shape
        pixels = batch * height * width
        out = torch.empty((batch, height, width, channels), dtype=dtype, device=levels.device)
        self._kernels.to_input[(-(-pixels // 512),)](
            out, levels, pixels, (white - black) / 255, black, C=channels, BLOCK_P=512, **_OPTIONS
        )
        return out.permute(0, 3, 1, 2)

    def to_bytes(self, y: Tensor, patch_px: int) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] to bytes (B, H, W, 3), and whether each patch is finite: bool (B, rows, cols)."""
        batch, _, height, width = y.shape
        cols = width // patch_px
        levels = torch.empty((batch, height, width, 3), dtype=torch.uint8, device=y.device)
        finite = torch.empty((batch, height, cols), dtype=torch.uint8, device=y.device)
        self._kernels.to_bytes[cols, height, batch](
            levels, finite, y, *y.stride(), height, cols, patch_px, BLOCK_P=min(512, _power(patch_px)), **_OPTIONS
        )
        return levels, finite.view(batch, height // patch_px, patch_px, cols).amin(2).bool()

    def _norm_arguments(
        self, values: Values, finish: Finish, out_width: int, across: int, spare: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...], int]:
        """The tensors, the steps and the number of segments; ``spare`` stands for what a kernel does not read."""
        count = -(-out_width // across)
        if values is None:
            return (spare,) * 10, (0, 0, 0, 0), count
        parameters = tuple(spare if value is None else value for value in (values.weight, values.bias, values.offset))
        if isinstance(values, Uniform):
            mean, scale = _steps_alike(values.mean, values.scale)
            return (mean, scale, *parameters, *(spare,) * 5), (mean.stride(0), 0, 0, 0), count
        stats = values.stats if values.stats.stride(4) == 1 else values.stats.contiguous()
        rows, cols = values.rows, values.cols
        segments = self._segments_of(cols, finish.pad, across)
        tables = (stats, spare, *parameters, rows.lower, rows.upper, rows.fraction, cols.fraction, segments)
        return tables, stats.stride()[:4], len(segments)

    def _segments_of(self, cols: FieldAxis, pad: int, across: int) -> Tensor:
        """Columns of the padded result that one program makes, all between the same two cells: (n, 4) int32."""
        key = (id(cols), pad, across)
        if key not in self._segments:
            found = torch.tensor(segments_of(cols, pad, across), dtype=torch.int32)
            self._segments[key] = cols, found.to(cols.lower.device)
        return self._segments[key][1]


def segments_of(cols: FieldAxis, pad: int, across: int) -> list[tuple[int, int, int, int]]:
    """Runs of at most ``across`` columns of a map padded by reflection: (first, last + 1, left cell, right cell)."""
    cells = [(left, right) for pixels, left, right in cols.runs for _ in range(pixels.start, pixels.stop)]
    padded = [*reversed(cells[1 : pad + 1]), *cells, *reversed(cells[len(cells) - pad - 1 : -1])] if pad else cells
    found: list[tuple[int, int, int, int]] = []
    first = 0
    for col in range(1, len(padded) + 1):
        if col == len(padded) or padded[col] != padded[first] or col - first == across:
            found.append((first, col, *padded[first]))
            first = col
    return found


def _as_pixels(x: Tensor) -> Tensor:
    """The same map with its channels side by side; a part of a map that has them stays a view."""
    batch, height, row, col = x.permute(0, 2, 3, 1).stride()
    channels = x.shape[1]
    sound = col == 1 and row == channels and height % channels == 0 and batch % channels == 0
    return x if sound else x.contiguous(memory_format=torch.channels_last)


def _steps_alike(mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    if mean.stride() == scale.stride() and mean.stride(1) == 1:
        return mean, scale
    return mean.contiguous(), scale.contiguous()


def _power(number: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << (number - 1).bit_length()


def checked(device: torch.device, *, told: Callable[[str], None]) -> KernelOps | None:
    """The operations, after a small map came out right on the device; otherwise None, and ``told`` why."""
    why = why_not()
    if why is None:
        try:
            ops = KernelOps()
            x = torch.linspace(-1, 1, 2 * 8 * 6 * 6, device=device).view(2, 6, 6, 8).permute(0, 3, 1, 2)
            _, scales = ops.measured(x, correction=0, eps=1e-5)
            found = ops(x, Uniform(*scales.unbind(1)), Finish(pad=1))
            wanted = torch.nn.functional.pad(torch.nn.functional.instance_norm(x), (1, 1, 1, 1), mode="reflect")
            if torch.allclose(found, wanted, atol=1e-4):
                return ops
            why = "they compute other numbers than torch"
        except Exception as error:  # a compiler raises many kinds
            if is_out_of_memory(error):
                raise
            if (lost := lost_device(error, str(device))) is not None and "Triton" not in lost.message:
                raise lost from error
            why = " ".join(str(error).split())[:200] or type(error).__name__
    told(f"{device}: no kernels of its own, which is slower: {why}")
    return None
