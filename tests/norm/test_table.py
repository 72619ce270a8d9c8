"""Smoothing against SciPy, and what non-finite, unmeasured and weightless cells do to their neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from kin_cli.geometry import Cell
from kin_cli.norm.kernel import Kernel
from kin_cli.norm.table import SmoothedTable, StatTable
from kin_cli.store.blobs import BlobStore

ROWS, COLS, CHANNELS = 6, 9, 5
KERNELS = ["1", "constant:3", "gaussian:3", "gaussian:7", "constant:11", "gaussian:7:1.5"]


@pytest.fixture
def stats() -> np.ndarray:
    return np.random.default_rng(1).uniform(0.5, 2, (ROWS, COLS, 2, CHANNELS)).astype(np.float32)


def make(folder: Path, stats: np.ndarray, skip: frozenset[tuple[int, int]] = frozenset()) -> StatTable:
    folder.mkdir(exist_ok=True)
    table = StatTable(BlobStore(folder, "table", capacity=ROWS * COLS), rows=ROWS, cols=COLS, channels=CHANNELS)
    for cell in np.ndindex(ROWS, COLS):
        if cell not in skip:
            table.write(Cell(*cell), stats[cell])
    return table


def everything(table: SmoothedTable) -> np.ndarray:
    return table.block(range(ROWS), range(COLS))


def scipy_smooth(values: np.ndarray, kernel: str) -> np.ndarray:
    taps = Kernel.parse(kernel).taps()
    full = np.outer(taps, taps)[:, :, None, None] if values.ndim == 4 else np.outer(taps, taps)
    return ndimage.correlate(values.astype(np.float64), full, mode="nearest")


@pytest.mark.parametrize("kernel", KERNELS)
def test_weight_one_is_the_papers_convolution(tmp_path: Path, stats: np.ndarray, kernel: str) -> None:
    smoothed = everything(SmoothedTable(make(tmp_path, stats), np.ones((ROWS, COLS), np.float32), Kernel.parse(kernel)))
    expected = scipy_smooth(stats, kernel)
    np.testing.assert_allclose(smoothed[:, :, 0], expected[:, :, 0], rtol=2e-6)
    np.testing.assert_allclose(smoothed[:, :, 1], 1 / expected[:, :, 1], rtol=2e-6)


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_weights_renormalize_the_kernel(tmp_path: Path, stats: np.ndarray, kernel: str) -> None:
    weights = np.random.default_rng(2).uniform(0.01, 1, (ROWS, COLS)).astype(np.float32)
    smoothed = everything(SmoothedTable(make(tmp_path, stats), weights, Kernel.parse(kernel)))
    expected = scipy_smooth(stats * weights[..., None, None], kernel) / scipy_smooth(weights, kernel)[..., None, None]
    np.testing.assert_allclose(smoothed[:, :, 0], expected[:, :, 0], rtol=5e-6)
    np.testing.assert_allclose(smoothed[:, :, 1], 1 / expected[:, :, 1], rtol=5e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_cell_counts_as_if_it_had_no_weight(tmp_path: Path, stats: np.ndarray, bad: float) -> None:
    poisoned, weights = stats.copy(), np.ones((ROWS, COLS), np.float32)
    poisoned[2, 3, 1, 4] = bad
    kernel = Kernel.parse("gaussian:3")
    smoothed = everything(SmoothedTable(make(tmp_path / "poisoned", poisoned), weights, kernel))
    weights[2, 3] = 0
    expected = everything(SmoothedTable(make(tmp_path / "weightless", stats), weights, kernel))
    np.testing.assert_array_equal(smoothed, expected)
    assert np.isfinite(smoothed).all()


def test_an_unmeasured_cell_borrows_from_those_within_reach(tmp_path: Path, stats: np.ndarray) -> None:
    weights = np.ones((ROWS, COLS), np.float32)
    smoothed = SmoothedTable(make(tmp_path, stats, skip=frozenset({(0, 0)})), weights, Kernel.parse("constant:3"))
    # The corner's own replicas are unmeasured too: of the 3 × 3 window four places remain with (0,1), (1,0) twice each.
    expected = (2 * stats[0, 1, 0] + 2 * stats[1, 0, 0] + stats[1, 1, 0]) / 5
    np.testing.assert_allclose(smoothed.block(range(1), range(1))[0, 0, 0], expected, rtol=1e-6)


def test_beyond_the_kernels_reach_neighbours_and_then_the_table_mean_stand_in(
    tmp_path: Path, stats: np.ndarray
) -> None:
    weights = np.zeros((ROWS, COLS), np.float32)
    weights[0, 0], weights[0, 2] = 1, 0.5
    smoothed = SmoothedTable(make(tmp_path, stats), weights, Kernel.parse("1"))
    mean = smoothed.block(range(ROWS), range(COLS))[:, :, 0]
    np.testing.assert_array_equal(mean[0, 0], stats[0, 0, 0])
    np.testing.assert_allclose(mean[1, 1], (stats[0, 0, 0] + stats[0, 2, 0]) / 2, rtol=1e-6)
    np.testing.assert_allclose(mean[5, 8], (stats[0, 0, 0] + 0.5 * stats[0, 2, 0]) / 1.5, rtol=1e-6)


def test_any_block_is_a_cut_of_the_whole_with_its_edges_replicated(tmp_path: Path, stats: np.ndarray) -> None:
    weights = np.random.default_rng(3).uniform(0, 1, (ROWS, COLS)).astype(np.float32)
    weights[weights < 0.4] = 0
    for kernel in ("1", "gaussian:3", "global"):
        smoothed = SmoothedTable(make(tmp_path / kernel.replace(":", ""), stats), weights, Kernel.parse(kernel))
        padded = np.pad(everything(smoothed), ((3, 3), (3, 3), (0, 0), (0, 0)), mode="edge")
        for top, left, height, width in [(-2, -2, 4, 4), (0, 5, 3, 6), (5, 8, 4, 3), (2, 2, 1, 1), (-3, 0, 3, 9)]:
            block = smoothed.block(range(top, top + height), range(left, left + width))
            np.testing.assert_array_equal(block, padded[top + 3 : top + 3 + height, left + 3 : left + 3 + width])


def test_global_is_the_plain_average(tmp_path: Path, stats: np.ndarray) -> None:
    smoothed = SmoothedTable(make(tmp_path, stats), np.ones((ROWS, COLS), np.float32), Kernel.parse("global"))
    np.testing.assert_allclose(everything(smoothed)[3, 4, 0], stats[:, :, 0].mean(axis=(0, 1)), rtol=1e-6)
    np.testing.assert_allclose(everything(smoothed)[0, 0, 1], 1 / stats[:, :, 1].mean(axis=(0, 1)), rtol=1e-6)


def test_a_channel_without_spread_gets_scale_zero_not_infinity(tmp_path: Path, stats: np.ndarray) -> None:
    stats[:, :, 1, 2] = 0
    smoothed = everything(SmoothedTable(make(tmp_path, stats), np.ones((ROWS, COLS), np.float32), Kernel.parse("1")))
    assert (smoothed[:, :, 1, 2] == 0).all()
    assert np.isfinite(smoothed).all()


def test_an_unmeasured_cell_reads_as_nan(tmp_path: Path, stats: np.ndarray) -> None:
    table = make(tmp_path, stats, skip=frozenset({(1, 1)}))
    assert np.isnan(table.read(Cell(1, 1))).all()
    np.testing.assert_array_equal(table.read(Cell(1, 2)), stats[1, 2])


def test_a_prior_draws_cells_with_little_tissue_to_the_tables_mean(tmp_path: Path, stats: np.ndarray) -> None:
    weights = np.random.default_rng(4).uniform(0, 0.02, (ROWS, COLS)).astype(np.float32)
    weights[:, :3] = 1
    weights[4:, 6:] = 0
    kernel = Kernel.parse("gaussian:3")
    smoothed = everything(SmoothedTable(make(tmp_path, stats), weights, kernel, prior=0.01))
    mean = (stats * weights[..., None, None]).sum((0, 1)) / weights.sum()
    total = scipy_smooth(stats * weights[..., None, None], "gaussian:3") + 0.01 * mean
    expected = total / (scipy_smooth(weights, "gaussian:3")[..., None, None] + 0.01)
    np.testing.assert_allclose(smoothed[:, :, 0], expected[:, :, 0], rtol=1e-5)
    np.testing.assert_allclose(smoothed[:, :, 1], 1 / expected[:, :, 1], rtol=1e-5)
    np.testing.assert_allclose(smoothed[5, 8, 0], mean[0], rtol=1e-5)
