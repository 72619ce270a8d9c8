"""The seam metric on real tissue: blind to texture, codec and colour map; sensitive to what patches do."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import color

from kin_cli.errors import UsageError
from kin_cli.geometry import Box, Pixels, Size
from kin_cli.metrics.colour import LINEAR
from kin_cli.metrics.seams import (
    STATISTICS,
    SeamGrid,
    SeamMeter,
    SeamSummary,
    SeamTable,
    line_values,
    seam_result,
)
from kin_cli.slide.open import open_slide
from kin_cli.slide.tissue import TissueMask
from kin_cli.slide.view import open_view
from tests.helpers.seams import measure_seams

PATCH = 128
SIDE = 1280


@pytest.fixture(scope="module")
def whole(shared_data: Path) -> Pixels:
    """A real slide, 2220×2967 px."""
    with open_slide(shared_data / "CMU-1-Small-Region.svs") as opened:
        return open_view(opened).read(Box(0, 0, 2220, 2967))


@pytest.fixture(scope="module")
def tissue(whole: Pixels) -> Pixels:
    """1280×1280 px of it."""
    return whole[900 : 900 + SIDE, 300 : 300 + SIDE]


def reader(pixels: Pixels) -> Callable[[Box], Pixels]:
    return lambda box: pixels[box.slices()]


def seams(pixels: Pixels, source: Pixels | None = None, *, patch_px: int = PATCH, **options: object) -> SeamSummary:
    size = Size(pixels.shape[1], pixels.shape[0])
    against = None if source is None else reader(source)
    return measure_seams(reader(pixels), size, patch_px=patch_px, source=against, **options)


def per_patch(pixels: Pixels, change: Callable[[Pixels, int, int], Pixels]) -> Pixels:
    """Every patch changed by a function that is told its row and column."""
    out = pixels.copy()
    for row in range(SIDE // PATCH):
        for col in range(SIDE // PATCH):
            box = Box(col * PATCH, row * PATCH, PATCH, PATCH).slices()
            out[box] = change(pixels[box], row, col)
    return out


DRAWS = np.random.default_rng(7).normal(size=(SIDE // PATCH, SIDE // PATCH, 3))


def shifted(pixels: Pixels, level: float) -> Pixels:
    """Patches moved in CIELAB so that neighbours differ by about ``level`` ΔE, root mean square."""

    def change(patch: Pixels, row: int, col: int) -> Pixels:
        lab = color.rgb2lab(patch) + DRAWS[row, col] * level / 6**0.5
        return np.rint(color.lab2rgb(lab) * 255).astype(np.uint8)

    return per_patch(pixels, change)


def contrasted(pixels: Pixels, deviation: float) -> Pixels:
    def change(patch: Pixels, row: int, col: int) -> Pixels:
        centre = patch.mean(axis=(0, 1))
        gain = 1 + deviation * DRAWS[row, col, 0]
        return np.rint(np.clip(centre + gain * (patch - centre), 0, 255)).astype(np.uint8)

    return per_patch(pixels, change)


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return np.array(Image.open(buffer))


@pytest.mark.parametrize("origin", [(0, 0), (13, 7), (40, 22), (50, 50)])
def test_an_untouched_slide_has_no_seams_at_any_offset(whole: Pixels, origin: tuple[int, int]) -> None:
    summary = seams(whole, patch_px=64, origin=origin)
    for statistic in STATISTICS:
        assert summary.result(statistic).ratio == pytest.approx(1, abs=0.1)
    assert summary.result().excess < 1.5


def test_a_recoloured_copy_has_the_seams_of_its_source(tissue: Pixels) -> None:
    mixing = np.array([[0.5, 0.3, 0.1], [0.1, 0.6, 0.1], [0.3, 0.1, 0.6]])
    recoloured = np.rint(255 * ((tissue / 255) ** 1.3) @ mixing).astype(np.uint8)
    for origin in ((0, 0), (37, 90)):
        summary = seams(recoloured, tissue, origin=origin)
        assert summary.result("step").headline == pytest.approx(1, abs=0.05)
        assert summary.result("fine").headline == pytest.approx(1, abs=0.05)
    same = seams(tissue, tissue).result()
    assert (same.ratio_to_source, same.interval, same.excess) == (1, (1, 1), 0)


def test_it_grows_with_planted_shifts_and_excess_is_their_size(tissue: Pixels) -> None:
    levels = (0, 0.5, 1, 2, 8)
    results = [seams(shifted(tissue, level), tissue).result() for level in levels]
    ratios = [result.headline for result in results]
    assert ratios == sorted(ratios)
    assert ratios[-1] > 4
    distances = [np.linalg.norm(np.diff(DRAWS, axis=axis), axis=-1).mean() / 6**0.5 for axis in (0, 1)]
    for level, result, tolerance in zip(levels[2:], results[2:], (0.5, 0.25, 0.25), strict=True):
        # root of mean squares: background beside dense tissue makes a small shift look up to 1.5 times as large
        assert result.excess == pytest.approx(level * np.mean(distances), rel=tolerance)
        assert result.p < 0.001
        assert result.interval[0] > 1


def test_it_grows_with_planted_contrast(tissue: Pixels) -> None:
    ratios = [seams(contrasted(tissue, deviation), tissue).result().headline for deviation in (0, 0.1, 0.2, 0.4)]
    assert ratios == sorted(ratios)
    assert ratios[1] > 1.1


@pytest.mark.parametrize("quality", [95, 80, 50, 30])
def test_jpeg_quality_is_no_seam(tissue: Pixels, quality: int) -> None:
    coded = jpeg(tissue, quality)
    for origin in ((0, 0), (5, 9)):
        summary = seams(coded, tissue, patch_px=64, origin=origin)
        for statistic in ("step", "step_luma", "fine"):
            assert summary.result(statistic).headline == pytest.approx(1, abs=0.06)


def test_storage_tiles_of_420_jpeg_need_their_own_phase_or_luma(whole: Pixels) -> None:
    stored = whole[: 45 * 64, : 34 * 64]
    coded = stored.copy()
    for y in range(0, 45 * 64, 64):
        for x in range(0, 34 * 64, 64):
            coded[y : y + 64, x : x + 64] = jpeg(stored[y : y + 64, x : x + 64], 40)
    assert seams(coded, stored).result("step").headline > 1.1
    assert seams(coded, stored).result("step_luma").headline == pytest.approx(1, abs=0.05)
    assert seams(coded, stored, phase=64).result("step").headline == pytest.approx(1, abs=0.05)


def test_what_the_other_statistics_are_for(tissue: Pixels) -> None:
    framed = tissue.copy()
    for edge in (*range(0, SIDE, PATCH), *range(PATCH - 2, SIDE, PATCH)):
        framed[edge : edge + 2] = framed[edge : edge + 2] * 0.9
        framed[:, edge : edge + 2] = framed[:, edge : edge + 2] * 0.9
    summary = seams(framed, tissue)
    assert summary.result("line").headline > 1.3 > 1.1 > summary.result("step").headline

    def slipped(patch: Pixels, row: int, col: int) -> Pixels:
        return np.roll(patch, np.rint(1.5 * DRAWS[row, col, :2]).astype(int), axis=(0, 1))

    assert seams(per_patch(tissue, slipped), tissue).result("fine").headline > 1.2

    strong = shifted(tissue, 8).astype(float)
    ramp = np.clip((np.arange(SIDE) % PATCH + 8.5) / 16, 0, 1)
    # patches blended over the 8 pixels on either side of every vertical border
    edges = np.repeat(strong[:, PATCH - 1 :: PATCH], PATCH, axis=1)[:, : SIDE - PATCH]
    left = np.concatenate([strong[:, :PATCH], edges], axis=1)
    weight = np.where(np.arange(SIDE) % PATCH < 8, ramp, 1.0)[None, :, None]
    faded = np.rint(weight * strong + (1 - weight) * left).astype(np.uint8)
    vertical = seams(faded, tissue).results["vertical"]
    assert vertical["ramp16"].headline > 1.15


def test_patterns_without_a_seam_are_none(tissue: Pixels) -> None:
    period = np.indices(tissue.shape[:2]) // 8 % 2
    checked = np.clip(tissue.astype(int) + 10 * (period[0] ^ period[1])[..., None], 0, 255).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 10, tissue.shape)
    noisy = np.clip(tissue + noise, 0, 255).astype(np.uint8)
    assert seams(checked, tissue).result().headline == pytest.approx(1, abs=0.06)
    assert seams(noisy, tissue).result().headline == pytest.approx(1, abs=0.06)


def test_directions_are_told_apart(tissue: Pixels) -> None:
    offset = (np.arange(SIDE) // PATCH % 2 * 12)[None, :, None]
    striped = np.minimum(tissue.astype(int) + offset, 255).astype(np.uint8)
    summary = seams(striped, tissue)
    assert summary.result("step", "vertical").headline > 2
    assert summary.result("step", "horizontal").headline == pytest.approx(1, abs=0.06)
    assert {line.direction for line in summary.worst(count=20)} == {"vertical"}


def test_the_worst_borders_are_where_the_wrong_patch_is(tissue: Pixels) -> None:
    spoiled = tissue.copy()
    spoiled[5 * PATCH : 6 * PATCH, 3 * PATCH : 4 * PATCH] //= 2
    found = {(line.direction, line.x // PATCH, line.y // PATCH) for line in seams(spoiled, tissue).worst(count=4)}
    assert found == {("vertical", 3, 5), ("vertical", 4, 5), ("horizontal", 3, 5), ("horizontal", 3, 6)}


def test_a_line_by_hand(tissue: Pixels) -> None:
    """The statistics from their definition, Lab by scikit-image, on one strip."""
    strip = tissue[300:428, 500 : 500 + 32 + PATCH]

    def lab(columns: Pixels) -> np.ndarray:
        linear = LINEAR[columns].mean(axis=(0, 1))
        encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        return color.rgb2lab(encoded)

    def distance(one: Pixels, other: Pixels) -> float:
        return float(np.linalg.norm(lab(one) - lab(other)))

    def statistics(at: int) -> list[float]:
        a, b = strip[:, :at], strip[:, at:]
        luma = [(s.mean(axis=0) * (0.299, 0.587, 0.114)).sum() for s in (a[:, -1], b[:, 0])]
        inner = np.concatenate([a[:, -2:], b[:, :2]], axis=1)
        outer = np.concatenate([a[:, -8:-4], b[:, 4:8]], axis=1)
        return [
            distance(a[:, -1:], b[:, :1]),
            abs(luma[0] - luma[1]),
            distance(a[:, -8:-4], b[:, 4:8]),
            distance(a[:, -32:-16], b[:, 16:32]),
            distance(inner, outer),
            np.abs(b[:, 0].astype(int) - a[:, -1]).mean(),
        ]

    grid = SeamGrid(Size(SIDE, SIDE), PATCH)
    assert grid.offsets.tolist() == [32, 48, 64, 80, 96]
    expected = [statistics(32), np.mean([statistics(32 + offset) for offset in grid.offsets], axis=0)]
    np.testing.assert_allclose(line_values(strip, grid.offsets).T, expected, atol=0.01)


def test_offsets_are_those_of_the_definition() -> None:
    size = Size(4096, 4096)
    assert len(SeamGrid(size, 512).offsets) == 25
    assert len(SeamGrid(size, 256).offsets) == 13
    assert SeamGrid(size, 512, phase=256).offsets.tolist() == [256]


def test_blocks_in_any_order_make_the_same_summary_with_bounded_reads(tissue: Pixels) -> None:
    largest = 0

    def read(box: Box) -> Pixels:
        nonlocal largest
        largest = max(largest, box.width * box.height)
        # repeated, since no real slide of this size is at hand
        return np.take(
            np.take(tissue, range(box.y, box.bottom), 0, mode="wrap"), range(box.x, box.right), 1, mode="wrap"
        )

    grid = SeamGrid(Size(2300, 6000), PATCH, (3, 5))
    meter = SeamMeter(grid, read)
    blocks = list(meter.blocks())
    assert len(blocks) == 3 * 6
    parts = [meter.measure(block) for block in blocks]
    assert sum(map(len, parts)) == 46 * 16 + 45 * 17
    assert largest <= (1024 + 32) ** 2
    summary = meter.summary(parts)
    random.Random(1).shuffle(parts)
    assert meter.summary(parts).result().ratio == pytest.approx(summary.result().ratio, rel=1e-12)
    assert meter.summary(parts).result().interval == pytest.approx(summary.result().interval, rel=1e-9)


def test_tissue_on_both_sides_only() -> None:
    mask = np.zeros((6, 6), np.bool_)
    mask[1:3, 1:4] = True
    size = Size(6 * PATCH, 6 * PATCH)
    pixels = np.full((size.height, size.width, 3), 200, np.uint8)
    summary = seams(pixels, mask=TissueMask(mask, size))
    assert (summary.result("step", "vertical").n, summary.result("step", "horizontal").n) == (4, 3)


def test_nothing_to_compare_with_is_null_not_one() -> None:
    flat = seams(np.full((900, 900, 3), 240, np.uint8)).result()
    assert (flat.ratio, flat.headline, flat.interval, flat.excess) == (None, None, None, 0)
    small = seams(np.zeros((200, 200, 3), np.uint8))
    assert (small.result().n, small.result().ratio, small.worst()) == (0, None, [])
    assert small.as_dict()["both"]["step"]["excess"] is None


@pytest.mark.parametrize(("patch_px", "phase"), [(63, 16), (512, 24), (512, 512), (512, 0)])
def test_grids_that_cannot_be_measured(patch_px: int, phase: int) -> None:
    with pytest.raises(UsageError):
        SeamGrid(Size(4096, 4096), patch_px, phase=phase)


def test_the_jackknife_covers() -> None:
    """Of tables drawn without seams, 95 % of the intervals hold 1, as the normal theory of a ratio says."""
    draws = np.random.default_rng(3)
    cells = np.argwhere(np.ones((16, 16), np.bool_))
    covered, widths = 0, []
    for _ in range(400):
        values = np.zeros((256, 6, 2))
        values[:, 0, 0] = draws.gamma(4, 0.25, 256)
        values[:, 0, 1] = draws.gamma(50, 0.02, 256)
        result = seam_result(SeamTable(np.zeros(256, np.bool_), cells, values, None), 0)
        assert (result.n, result.blocks) == (256, 16)
        covered += result.interval[0] <= 1 <= result.interval[1]
        widths.append(np.log(result.interval[1] / result.interval[0]))
    assert 0.92 <= covered / 400 <= 0.98
    assert np.mean(widths) == pytest.approx(2 * 2.131 * ((0.25 + 0.02) / 256) ** 0.5, rel=0.1)
