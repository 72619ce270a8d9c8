"""The Triton kernels of ``gpu.KernelOps``; imported only where Triton is, since torch's CPU builds come without it.

All maps are channels-last: (B, H, W, C) in memory. Every offset is a number of pixels times the constant ``C``, so that
the compiler knows that neighbouring channels can be read 16 bytes at a time. Programs belong to one sample and divide
it by its own size only: a sample's result does not depend on the batch.

Constants in capitals: C channels, BLOCK_C channels and BLOCK_W columns (or BLOCK_P pixels) per program.
"""

from __future__ import annotations

import triton
import triton.language as tl

# values of NORM and RESIZE
_NONE, _UNIFORM, _FIELD = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_SAME, _DOWN, _UP, _NEAREST = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def _reflected(index, count):
    """Position inside [0, count) of an index that may lie less than count beyond it: mirrored, edge not repeated."""
    index = tl.where(index < 0, -index, index)
    return tl.where(index >= count, 2 * count - 2 - index, index)


@triton.jit
def _clamped(index, count):
    return tl.minimum(tl.maximum(index, 0), count - 1)


@triton.jit
def _at(
    x, residual, line, residual_line, col, channel, mask, values,
    C: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """The normalized pixels in the columns ``col`` of one row that begins at ``line``: (BLOCK_W, BLOCK_C) float32."""
    mean, mean_step, scale, scale_step, shift, fraction = values
    y = tl.load(x + (line + col)[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORM == _UNIFORM:
        y = y * scale[None, :] + shift[None, :]
    elif NORM == _FIELD:
        mean = mean[None, :] + mean_step[None, :] * fraction[:, None]
        scale = scale[None, :] + scale_step[None, :] * fraction[:, None]
        y = (y - mean) * scale + shift[None, :]
    if RESIDUAL:
        pointers = residual + (residual_line + col)[:, None] * C + channel[None, :]
        y += tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        y = tl.where(y < 0, 0.0, y)  # NaN stays NaN
    return y


@triton.jit
def _line_of_cells(cells, rows_of_cells, fraction, cell, channel, inside, steps):
    """Mean and scale of the cells in column ``cell``, interpolated between two rows of cells: twice (BLOCK_C,)."""
    above, below = rows_of_cells
    row_step, col_step, which = steps
    here = cells + cell * col_step + channel
    first, second = here + above * row_step, here + below * row_step
    mean = tl.load(first, mask=inside, other=0.0)
    mean += (tl.load(second, mask=inside, other=0.0) - mean) * fraction
    scale = tl.load(first + which, mask=inside, other=0.0)
    scale += (tl.load(second + which, mask=inside, other=0.0) - scale) * fraction
    return mean, scale


@triton.jit
def _parameter(values, channel, inside, neutral, GIVEN: tl.constexpr, BLOCK_C: tl.constexpr):
    """A number per channel (BLOCK_C,) float32, the neutral one if none is given."""
    if GIVEN:
        found = tl.load(values + channel, mask=inside, other=0.0).to(tl.float32)
    else:
        found = tl.full((BLOCK_C,), neutral, tl.float32)
    return found


@triton.jit
def _values(
    stats, scales, weight, bias, offset, segment, row_lower, row_upper, row_fraction, col_fraction, cols,
    channel, inside, steps,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, OFFSET: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What a program normalizes with: mean and its step from cell to cell, scale and its step, shift, fractions."""
    gain = _parameter(weight, channel, inside, 1.0, WEIGHT, BLOCK_C)
    shift = _parameter(bias, channel, inside, 0.0, BIAS, BLOCK_C)
    added = _parameter(offset, channel, inside, 0.0, OFFSET, BLOCK_C)
    mean, mean_step, scale, scale_step, fraction = added, added, gain, gain, 0.0
    if NORM == _UNIFORM:
        mean = tl.load(stats + channel, mask=inside, other=0.0)
        scale = tl.load(scales + channel, mask=inside, other=0.0) * gain
        shift += (added - mean) * scale
    elif NORM == _FIELD:
        rows, down = (tl.load(row_lower), tl.load(row_upper)), tl.load(row_fraction)
        mean, scale = _line_of_cells(stats, rows, down, tl.load(segment + 2), channel, inside, steps)
        mean_step, scale_step = _line_of_cells(stats, rows, down, tl.load(segment + 3), channel, inside, steps)
        mean_step, scale_step = mean_step - mean, (scale_step - scale) * gain
        mean, scale = mean - added, scale * gain
        fraction = tl.load(col_fraction, mask=cols, other=0.0)
    return mean, mean_step, scale, scale_step, shift, fraction


@triton.jit
def _blurred(
    x, residual, x_row, residual_row, height, width, row, col, channel, mask, values,
    C: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """The normalized map blurred with the taps 1 2 1 and halved, borders reflected: one row, (BLOCK_W, BLOCK_C)."""
    y = tl.zeros(SHAPE, tl.float32)
    for down in tl.static_range(3):
        at_row = _reflected(2 * row + down - 1, height)
        for across in tl.static_range(3):
            at_col = _reflected(2 * col + across - 1, width)
            tap = _at(
                x, residual, at_row * x_row, at_row * residual_row, at_col, channel, mask, values,
                C, NORM, RESIDUAL, RELU,
            )  # fmt: skip
            y += tap * ((1 + down % 2) * (1 + across % 2) / 16)
    return y


@triton.jit
def _doubled(
    x, residual, x_row, residual_row, height, width, row, col, channel, mask, values,
    C: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """The normalized map doubled by bilinear interpolation, borders replicated: one row, (BLOCK_W, BLOCK_C)."""
    y = tl.zeros(SHAPE, tl.float32)
    near_row, near_col = row // 2, col // 2
    far_row = _clamped(near_row + 2 * (row % 2) - 1, height)
    far_col = _clamped(near_col + 2 * (col % 2) - 1, width)
    for down in tl.static_range(2):
        at_row = near_row if down == 0 else far_row
        for across in tl.static_range(2):
            at_col = near_col if across == 0 else far_col
            tap = _at(
                x, residual, at_row * x_row, at_row * residual_row, at_col, channel, mask, values,
                C, NORM, RESIDUAL, RELU,
            )  # fmt: skip
            y += tap * ((3 - 2 * down) * (3 - 2 * across) / 16)
    return y


@triton.jit(
    do_not_specialize=[
        "x_sample", "x_row", "residual_sample", "residual_row", "height", "width", "out_height", "out_width",
        "stats_sample", "stats_row", "stats_col", "stats_which",
    ]
)  # fmt: skip
def sweep(
    out, x, residual, stats, scales, weight, bias, offset,
    row_lower, row_upper, row_fraction, col_fraction, segments,
    x_sample, x_row, residual_sample, residual_row, height, width, out_height, out_width,
    stats_sample, stats_row, stats_col, stats_which,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, NORM: tl.constexpr,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, OFFSET: tl.constexpr,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, RESIZE: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """One row of the result by BLOCK_W columns (a segment of them, if there is a field) and BLOCK_C channels.

    Grid: (segments · blocks of channels, rows of the result, samples). ``x`` and ``residual`` are (B, H, W, C) with
    steps in pixels; ``out`` is contiguous. ``stats`` and ``scales`` are (B, C) means and scales if NORM is uniform; if
    it is a field, ``stats`` are cells (B, r, c, 2, C) with steps in elements, ``segments`` is (n, 4): first and last
    column of the result, left and right cell; fractions and rows of cells are those of the pixels of ``x``.
    """
    BLOCKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    segment, row, sample = tl.program_id(0) // BLOCKS, tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = (tl.program_id(0) % BLOCKS) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < C
    if NORM == _FIELD:
        col, last = tl.load(segments + 4 * segment) + tl.arange(0, BLOCK_W), tl.load(segments + 4 * segment + 1)
    else:
        col, last = segment * BLOCK_W + tl.arange(0, BLOCK_W), out_width
    mask = (col < last)[:, None] & inside[None, :]
    base_row, base_col = row, col  # the pixel of the map before the padding
    if PAD > 0:
        base_row = _reflected(row - PAD, out_height - 2 * PAD)
        base_col = _reflected(col - PAD, out_width - 2 * PAD)

    values = _values(
        stats + sample * stats_sample, scales + sample * stats_sample, weight, bias, offset, segments + 4 * segment,
        row_lower + base_row, row_upper + base_row, row_fraction + base_row, col_fraction + base_col, col < last,
        channel, inside, (stats_row, stats_col, stats_which), NORM, WEIGHT, BIAS, OFFSET, BLOCK_C,
    )  # fmt: skip
    x += sample * x_sample * C
    residual += sample * residual_sample * C
    SHAPE: tl.constexpr = (BLOCK_W, BLOCK_C)
    if RESIZE == _DOWN:
        y = _blurred(
            x, residual, x_row, residual_row, height, width, base_row, base_col, channel, mask, values,
            C, NORM, RESIDUAL, RELU, SHAPE,
        )  # fmt: skip
    elif RESIZE == _UP:
        y = _doubled(
            x, residual, x_row, residual_row, height, width, base_row, base_col, channel, mask, values,
            C, NORM, RESIDUAL, RELU, SHAPE,
        )  # fmt: skip
    else:
        if RESIZE == _NEAREST:
            base_row, base_col = base_row // 2, base_col // 2
        y = _at(
            x, residual, base_row * x_row, base_row * residual_row, base_col, channel, mask, values,
            C, NORM, RESIDUAL, RELU,
        )  # fmt: skip
    here = out + (sample * out_height + row) * out_width * C
    tl.store(here + col[:, None] * C + channel[None, :], y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["pixels", "chunk", "chunks"])
def chunk_moments(
    x, means, squares, pixels, chunk, chunks, C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr
):
    """Mean and sum of squared deviations of one chunk of pixels: (B, pixels, C) to twice (B, chunks, C) float32.

    Grid: (chunks, blocks of channels, samples). The sums are shifted by the mean of the chunk's first pixels, so that a
    mean far from 0 costs no digits.
    """
    number, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < C
    x += sample * pixels * C
    first = number * chunk
    last = tl.minimum(first + chunk, pixels)
    pixel = first + tl.arange(0, BLOCK_P)
    mask = (pixel < last)[:, None] & inside[None, :]
    value = tl.load(x + pixel[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    origin = tl.sum(value, axis=0) / tl.minimum(last - first, BLOCK_P)
    total, square = tl.zeros((BLOCK_P, BLOCK_C), tl.float32), tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(first, last, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        mask = (pixel < last)[:, None] & inside[None, :]
        value = tl.load(x + pixel[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        away = tl.where(mask, value - origin[None, :], 0.0)
        total += away
        square += away * away
    count = (last - first).to(tl.float32)
    away = tl.sum(total, axis=0) / count
    here = (sample * chunks + number) * C + channel
    tl.store(means + here, origin + away, mask=inside)
    tl.store(squares + here, tl.sum(square, axis=0) - count * away * away, mask=inside)


@triton.jit(do_not_specialize=["pixels", "chunk", "chunks", "correction", "eps"])
def join_moments(
    stats, scales, means, squares, offset, pixels, chunk, chunks, correction, eps,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Join the chunks of a sample: (B, chunks, C) twice to (B, 2, C) twice: mean and σ, mean and 1/σ.

    Grid: (blocks of channels, samples). σ = √(var + eps); 1/σ is 0 where σ is. BLOCK_K is at least the number of
    chunks. As in Chan, Golub and LeVeque, 1979, for all chunks at once.
    """
    sample = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    number = tl.arange(0, BLOCK_K)
    inside = channel < C
    mask = (number < chunks)[:, None] & inside[None, :]
    here = (sample * chunks + number)[:, None] * C + channel[None, :]
    mean = tl.load(means + here, mask=mask, other=0.0)
    square = tl.load(squares + here, mask=mask, other=0.0)
    count = tl.minimum(chunk, pixels - number * chunk).to(tl.float32)[:, None]
    # means are close to each other: what they differ by is summed, so that a mean far from 0 costs no digits
    origin = tl.load(means + sample * chunks * C + channel, mask=inside, other=0.0)
    away = tl.where(mask, (mean - origin[None, :]) * count, 0.0)
    whole = origin + tl.sum(away, axis=0) / pixels
    apart = tl.where(mask, square + count * (mean - whole[None, :]) * (mean - whole[None, :]), 0.0)
    std = tl.sqrt_rn(tl.sum(apart, axis=0) / (pixels - correction) + eps)
    if OFFSET:
        whole += tl.load(offset + channel, mask=inside, other=0.0).to(tl.float32)
    at = sample * 2 * C + channel
    tl.store(stats + at, whole, mask=inside)
    tl.store(stats + at + C, std, mask=inside)
    tl.store(scales + at, whole, mask=inside)
    tl.store(scales + at + C, tl.where(std > 0, 1.0 / std, 0.0), mask=inside)


@triton.jit(do_not_specialize=["pixels", "gain", "black"])
def to_input(out, levels, pixels, gain, black, C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Bytes (pixels, 3) times gain plus black in the first 3 of C channels, 0 in the others. Grid: blocks of pixels."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, triton.next_power_of_2(C))
    mask = (pixel < pixels)[:, None] & (channel < C)[None, :]
    level = tl.load(levels + pixel[:, None] * 3 + channel[None, :], mask=mask & (channel < 3)[None, :], other=0)
    value = tl.where((channel < 3)[None, :], level.to(tl.float32) * gain + black, 0.0)
    tl.store(out + pixel[:, None] * C + channel[None, :], value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["y_sample", "y_channel", "y_row", "y_col", "height", "cols", "patch"])
def to_bytes(
    levels, finite, y, y_sample, y_channel, y_row, y_col, height, cols, patch, BLOCK_P: tl.constexpr
):  # fmt: skip
    """One row of one patch, (3, patch) in [-1, 1], to bytes (patch, 3), and whether all its numbers are finite.

    Rounded half up, as in the paper's released code; NaN becomes 0. Grid: (cols of patches, rows of pixels, samples).
    ``levels`` is (B, height, cols · patch, 3), ``finite`` (B, height, cols); ``y`` has any steps.
    """
    number, row, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    sound = 1
    for start in range(0, patch, BLOCK_P):
        at = start + tl.arange(0, BLOCK_P)
        col = number * patch + at
        for channel in tl.static_range(3):
            here = sample * y_sample + channel * y_channel + row * y_row
            value = tl.load(y + here + col * y_col, mask=at < patch, other=0.0).to(tl.float32)
            # false for NaN and for infinity
            sound = tl.minimum(sound, tl.min((tl.abs(value) < float("inf")).to(tl.int32), axis=0))
            level = tl.minimum(tl.maximum(value, -1.0), 1.0) * 127.5 + 128
            level = tl.where(value == value, tl.minimum(level, 255.0), 0.0)
            place = ((sample * height + row) * cols * patch + col) * 3 + channel
            tl.store(levels + place, level.to(tl.uint8), mask=at < patch)
    tl.store(finite + (sample * height + row) * cols + number, sound.to(tl.uint8))
