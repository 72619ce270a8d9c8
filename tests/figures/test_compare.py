"""``kin compare`` and ``kin sweep``: every column is what ``kin translate`` writes, all of them from one
table; corners and close-ups: the worst first, apart from each other, inside the image.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kin_cli.commands.compare import kinds_from
from kin_cli.errors import UsageError
from kin_cli.evaluation.seams import close_up
from kin_cli.figures.compare import (
    CompareSettings,
    Comparison,
    Corner,
    Look,
    Variant,
    Yardstick,
    clean_up,
    compare,
    worst_corners,
)
from kin_cli.figures.sheet import comparison_sheet, csv_rows, sweep_sheet, values_text
from kin_cli.geometry import Box, Size
from kin_cli.metrics.seams import SeamLine
from kin_cli.norm.kernel import Kernel
from kin_cli.passes.engine import Engine
from kin_cli.progress import SilentProgress
from kin_cli.settings import NormSettings, Settings
from kin_cli.translate import translate
from tests.helpers.processes import kin
from tests.helpers.progress import Watcher
from tests.helpers.seams import measure_seams
from tests.helpers.slides import write_photo
from tests.helpers.translations import PATCH, settings

WIDTH, HEIGHT = 330, 290
COMMON = ("--patch-size", PATCH, "--device", "cpu", "-j", 1)
NORMS = {
    "in": NormSettings(method="in", patch_px=PATCH),
    "tin": NormSettings(method="tin", patch_px=PATCH),
    "kin": NormSettings(kernel=Kernel.parse("gaussian:3"), patch_px=PATCH),
    "seamless": NormSettings(patch_px=PATCH, halo_px=None, interpolation="bilinear"),
}


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colours and contrast that change over the picture, so that every patch has statistics of its own."""
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    return write_photo(file, (WIDTH, HEIGHT), coarse=(5, 4), noise=(2, 40))


def base(photo: Path, model: Path, path: Path) -> Settings:
    own = {"kernel": None, "tissue": "auto", "icc": "drop", "skip_existing": True, "workers": 1}
    return settings(photo, model, path, **own)


def comparison_settings(photo: Path, model: Path, folder: Path, **changes: object) -> CompareSettings:
    variants = tuple(Variant(name, name.upper(), norm) for name, norm in NORMS.items())
    wanted = CompareSettings(base(photo, model, folder / "base.tif"), variants, folder, look=Look(2))
    return dataclasses.replace(wanted, **changes)


@pytest.fixture(scope="module")
def found(photo: Path, tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("comparison") / "work"
    comparison = compare(comparison_settings(photo, tiny_generator, folder), SilentProgress())
    assert [path.name for path in folder.iterdir()] == ["table"]  # all translations are gone
    clean_up(comparison.settings)
    assert not folder.exists()
    return comparison


def test_every_column_shows_and_measures_what_translate_writes(
    found: Comparison, photo: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    source = np.asarray(Image.open(photo))
    assert [column.name for column in found.variants] == list(NORMS)
    assert len(found.boxes) == 2
    for column in found.variants:
        wanted = base(photo, tiny_generator, tmp_path / f"{column.name}.tif")
        translate(dataclasses.replace(wanted, norm=NORMS[column.name]), SilentProgress())
        pixels = tifffile.imread(wanted.output.path)
        np.testing.assert_array_equal(column.overview, pixels)
        for box, shown in zip(found.boxes, column.close_ups, strict=True):
            np.testing.assert_array_equal(shown, pixels[box.slices()])
        summary = measure_seams(
            lambda box, pixels=pixels: pixels[box.slices()],
            Size(WIDTH, HEIGHT),
            patch_px=PATCH,
            source=lambda box: source[box.slices()],
        )
        for direction in ("both", "vertical", "horizontal"):
            assert column.seam(direction) == summary.result("step", direction)
    np.testing.assert_array_equal(found.source.overview, source)


def test_places_are_corners_of_the_grid_within_every_close_up(found: Comparison) -> None:
    for corner, box in zip(found.corners, found.boxes, strict=True):
        assert corner is not None
        assert (corner.x % PATCH, corner.y % PATCH) == (0, 0)
        assert (corner.x - box.x, corner.y - box.y) == (PATCH // 2, PATCH // 2)
    assert found.corners[0].excess >= found.corners[1].excess  # type: ignore[union-attr]


def test_the_sheet_holds_every_picture_and_every_figure(found: Comparison) -> None:
    figure = comparison_sheet(found)
    columns = (found.source, *found.variants)
    assert len(figure.axes) == 3 * len(columns)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    wanted = [column.overview for column in columns]
    wanted += [column.close_ups[row] for row in range(2) for column in columns]
    for one, other in zip(shown, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    texts = [text.get_text() for text in figure.texts]
    for column in found.variants:
        seam = column.seam()
        assert seam is not None
        assert column.title in texts
        assert f"{seam.excess:.2f}" in texts
        assert f"{seam.excess:.2f}" in values_text(found)
    assert_nothing_is_cut_off(figure)
    narrow = sweep_sheet(dataclasses.replace(found, notes=("a rather long note " * 20,)), [("constant", ["in"])])
    assert_nothing_is_cut_off(narrow)


def assert_nothing_is_cut_off(figure: Any) -> None:
    width, height = figure.get_size_inches() * figure.dpi
    canvas = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(canvas) for text in figure.texts]
    boxes += [axes.get_window_extent(canvas) for axes in figure.axes]
    for box in boxes:
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height
    texts = boxes[: len(figure.texts)]
    for number, one in enumerate(texts):  # nor does any text lie on another or on a picture
        assert not any(one.overlaps(other) for other in boxes[number + 1 :])


def test_statistics_are_measured_once(
    photo: Path, tiny_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    measure = Engine.measure
    monkeypatch.setattr(Engine, "measure", lambda self, images: measured.append(len(images)) or measure(self, images))
    compare(comparison_settings(photo, tiny_generator, tmp_path / "work"), SilentProgress())
    assert sum(measured) == 6 * 5 + 1  # and the thumbnail


def test_translations_are_kept_where_asked_and_taken_from_there(
    photo: Path, tiny_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = comparison_settings(photo, tiny_generator, tmp_path / "kept", keep=True)
    first = compare(keeping, SilentProgress())
    clean_up(keeping)
    assert {path.name for path in (tmp_path / "kept").glob("*.tif")} == {f"{name}.tif" for name in NORMS}
    monkeypatch.setattr(Engine, "__init__", lambda *_, **__: pytest.fail("translated again"))
    again = compare(keeping, SilentProgress())
    for one, other in zip(first.variants, again.variants, strict=True):
        np.testing.assert_array_equal(one.overview, other.overview)


def test_an_interrupted_comparison_goes_on(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def die(stage: str, done: int) -> None:
        if stage == "apply" and done and len(watcher.notes) > 2:
            raise Killed

    watcher = Watcher(die)
    wanted = comparison_settings(photo, tiny_generator, tmp_path / "work")
    with pytest.raises(Killed):
        compare(wanted, watcher)
    again = Watcher()
    compare(wanted, again)
    assert any("30 of 30 patches are measured" in note for note in again.notes)


def test_a_picture_without_any_corner_or_tile_still_makes_a_sheet(
    photo: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    Image.open(photo).crop((0, 0, 100, 90)).save(tmp_path / "small.png")
    found = compare(comparison_settings(tmp_path / "small.png", tiny_generator, tmp_path / "work"), SilentProgress())
    assert found.corners == (None,)
    assert any("only seams are measured" in note for note in found.notes)
    comparison_sheet(found)
    assert [row[2] for row in csv_rows(found)[1:] if row[1] == "R* both"] == [None] * len(NORMS)


def test_inception_without_a_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="FID compares with"):
        Yardstick(inception=tmp_path / "weights.pth")


def test_kinds_of_kernels_share_their_ends() -> None:
    assert kinds_from("constant, gaussian", "1,3,11,inf") == {
        "constant": ["1", "constant:3", "constant:11", "global"],
        "gaussian": ["1", "gaussian:3", "gaussian:11", "global"],
    }
    for kinds, sizes in (("box", "3"), ("constant", "4"), ("gaussian", "x")):
        with pytest.raises(UsageError):
            kinds_from(kinds, sizes)


def test_a_resampled_slide_is_compared_at_its_new_size(shared_data: Path, tiny_generator: Path, tmp_path: Path) -> None:
    slide, region = shared_data / "CMU-1-Small-Region.svs", "40,10,300,260"
    options = (slide, "-m", tiny_generator, "-o", tmp_path / "figure.svg", *COMMON, "--mpp", 2, "--region", region)
    done = kin("sweep", *options, "--sizes", "1", "--kinds", "constant", "--json", "--tissue", "none")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert (record["region"], record["mpp"]) == ([40, 10, 300, 260], 2.0)
    (place,) = record["close_ups"]
    scale = 2 / 0.499
    assert place["l0"] == pytest.approx([(40 + place["box"][0]) * scale, (10 + place["box"][1]) * scale], abs=8)
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")


def test_kin_compare_writes_picture_csv_and_json(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    output, table = tmp_path / "figure.png", tmp_path / "figures.csv"
    options = (*COMMON, "--kernels", "gaussian:3,global", "--csv", table, "--json", "--reference", photo)
    done = kin("compare", photo, "-m", tiny_generator, "-o", output, *options)
    assert done.code == 0, done.err
    record = json.loads(done.out)
    names = ["source", "in", "tin", "kin-gaussian-3", "kin-global", "seamless"]
    assert [column["name"] for column in record["columns"]] == names
    assert record["columns"][-1]["title"] == "seamless, gaussian:7"
    assert Image.open(output).width > 3000
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["column"] for row in rows} == set(names)
    written = {(row["column"], row["metric"]): row["value"] for row in rows}
    seams = record["columns"][1]["seams"]
    assert float(written["in", "excess both"]) == seams["both"]["step"]["excess"]
    assert {"ssim", "sobel_y", "piqe", "histogram"} <= {metric for name, metric in written if name == "in"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "figures.csv"]


def test_other_metrics_are_taken_from_kin_evaluate(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    table, common = tmp_path / "figures.csv", (photo, "-m", tiny_generator, "-o", tmp_path / "figure.png", *COMMON)
    assert "there is no metric 'psnr'" in kin("compare", *common, "--metrics", "psnr").err
    assert "cannot be computed without" in kin("compare", *common, "--metrics", "fid").err
    assert "nowhere.svs: no such file" in kin("compare", *common, "--reference", tmp_path / "nowhere.svs").err
    weights = ("--reference", photo, "--inception", tmp_path / "nowhere.pth")
    assert "nowhere.pth" in kin("compare", *common, *weights).err
    assert "seams cannot be measured between patches of 32 px" in kin("sweep", *common, "--patch-size", 32).err
    assert not list(tmp_path.iterdir())
    done = kin("compare", *common, "--metrics", "FSIM, seams", "--csv", table)
    assert done.code == 0, done.err
    with table.open(newline="") as file:
        measured = {row["metric"] for row in csv.DictReader(file)}
    assert {name for name in measured if not name.startswith(("R", "excess"))} == {"fsim", "fsim_whole"}
    assert "FSIM" in done.out


def test_kin_sweep_draws_a_section_for_each_kind(
    photo: Path, tiny_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets = []

    def keep(found: Comparison, sections: list[tuple[str, list[str]]]) -> object:
        sheets.append((found, sweep_sheet(found, sections)))
        return sheets[0][1]

    monkeypatch.setattr("kin_cli.figures.sheet.sweep_sheet", keep)
    output = tmp_path / "grid.png"
    done = kin("sweep", photo, "-m", tiny_generator, "-o", output, *COMMON, "--sizes", "1,3,inf")
    assert done.code == 0, done.err
    (found, figure) = sheets[0]
    assert [column.name for column in found.variants] == [
        *("kernel-1", "kernel-constant-3", "kernel-global", "kernel-gaussian-3")
    ]
    assert len(figure.axes) == 2 * 2 * 4  # kinds; whole and close-up; source and sizes
    assert output.exists()


def test_a_source_that_fakes_seams_in_colour_is_measured_in_luma(
    photo: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    slide = tmp_path / "slide.tif"
    how = {"compression": "jpeg", "Q": 80, "tile": True, "tile_width": PATCH, "tile_height": PATCH}
    pyvips.Image.new_from_file(str(photo)).tiffsave(str(slide), **how)
    found = compare(comparison_settings(slide, tiny_generator, tmp_path / "work"), SilentProgress())
    assert ["luma" in note for note in found.notes] == [True]
    assert {column.seams.statistic for column in found.variants if column.seams is not None} == {"step_luma"}
    assert "excess, 8-bit ↓" in values_text(found)


@pytest.mark.parametrize("command", ["compare", "sweep", "analyse"])
def test_what_cannot_be_drawn_is_refused_before_any_work(
    photo: Path, tiny_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def refused(output: Path) -> str:
        result = kin(command, photo, "-m", tiny_generator, "-o", output, *COMMON)
        assert result.code in (1, 2)
        assert len(result.err.strip().splitlines()) == 1
        return result.err

    assert "no known ending" in refused(tmp_path / "figure.tif")
    assert "no such folder" in refused(tmp_path / "nowhere" / "figure.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'kin-cli[figures]'" in refused(tmp_path / "figure.png")
    monkeypatch.undo()
    result = kin(command, photo, "-m", tmp_path / "no.pth", "-o", tmp_path / "figure.png", *COMMON)
    assert "no.pth" in result.err
    assert list(tmp_path.iterdir()) == []


EVERYWHERE = np.ones((6, 6), np.float32)


def line(direction: str, row: int, col: int, excess: float) -> SeamLine:
    return SeamLine(direction, col * PATCH, row * PATCH, PATCH, 0.0, 0.0, excess)


def test_a_patch_of_another_colour_is_found_at_its_corners() -> None:
    """Measured by the metric itself: the patch in row 2, column 3 is darker than all others."""
    pixels = np.random.default_rng(0).integers(120, 180, (6 * PATCH, 6 * PATCH, 3), np.uint8)
    pixels[2 * PATCH : 3 * PATCH, 3 * PATCH : 4 * PATCH] -= 60
    summary = measure_seams(lambda box: pixels[box.slices()], Size(6 * PATCH, 6 * PATCH), patch_px=PATCH)
    found = worst_corners(summary.lines(), EVERYWHERE, patch_px=PATCH, count=1)
    assert (found[0].x // PATCH, found[0].y // PATCH) in {(3, 2), (4, 2), (3, 3), (4, 3)}
    assert found[0].excess > 2


def test_the_four_boundaries_of_a_corner_count_together() -> None:
    """One strong boundary loses against a corner at which all four are rather strong."""
    lines = [line("vertical", 1, 1, 10.0)]
    lines += [line("vertical", 3, 4, 6.0), line("vertical", 4, 4, 6.0)]
    lines += [line("horizontal", 4, 3, 6.0), line("horizontal", 4, 4, 6.0)]
    assert worst_corners(lines, EVERYWHERE, patch_px=PATCH, count=1) == [Corner(4 * PATCH, 4 * PATCH, 6.0)]


def test_corners_amid_tissue_come_first() -> None:
    tissue = EVERYWHERE.copy()
    tissue[0, 0] = 0.4
    lines = [line("vertical", 0, 1, 50.0), line("vertical", 3, 3, 1.0)]
    found = worst_corners(lines, tissue, patch_px=PATCH, count=5)
    assert [(corner.x, corner.y) for corner in found] == [(3 * PATCH, 3 * PATCH), (PATCH, PATCH)]


def test_ends_at_the_edge_of_the_image_are_no_corners() -> None:
    assert worst_corners([line("vertical", 0, 2, 5.0)], np.ones((1, 4), np.float32), patch_px=PATCH, count=3) == []
    assert worst_corners([line("vertical", 2, 2, 5.0)], EVERYWHERE, patch_px=PATCH, count=0) == []


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 5), st.floats(0, 99)), max_size=40))
def test_chosen_corners_share_no_patch_and_get_no_worse(raw: list[tuple[bool, int, int, float]]) -> None:
    lines = [line("vertical" if upright else "horizontal", *place) for upright, *place in raw]
    found = worst_corners(lines, EVERYWHERE, patch_px=PATCH, count=4)
    for number, corner in enumerate(found):
        assert corner.excess <= min([99, *(other.excess for other in found[:number])])
        for other in found[:number]:
            assert max(abs(corner.x - other.x), abs(corner.y - other.y)) >= 2 * PATCH


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400), st.data())
def test_a_close_up_lies_inside_and_around_its_place(width: int, height: int, side: int, data: st.DataObject) -> None:
    x, y = data.draw(st.integers(0, width)), data.draw(st.integers(0, height))
    size = Size(width, height)
    box = close_up(x, y, side=side, size=size)
    assert box == Box(box.x, box.y, min(side, width), min(side, height)) == box.clipped(size)
    assert box.x <= x <= box.right
    assert box.y <= y <= box.bottom
    if side // 2 <= x <= width - side and side // 2 <= y <= height - side:
        assert (box.x, box.y) == (x - side // 2, y - side // 2)
