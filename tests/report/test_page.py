"""The report's content and its place in a run: right pixels and values, self-contained, never at the output's cost."""

from __future__ import annotations

import base64
import errno
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from kin_cli.commands.main import cli
from kin_cli.evaluation.seams import measure_slide_seams, verdict
from kin_cli.evaluation.settings import SeamChoice, SlideChoice
from kin_cli.evaluation.tiles import opened
from kin_cli.progress import SilentProgress
from kin_cli.report.evidence import own_results
from kin_cli.slide.tissue import all_tissue
from tests.helpers.processes import kin
from tests.helpers.slides import break_tile, write_slide
from tests.helpers.translations import SMALL, digest

VOID = {"meta", "link", "img", "input", "br"}


class Reader(HTMLParser):
    """What a page holds, read by Python's own parser; an unbalanced tag is an error."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.pictures: dict[str, np.ndarray] = {}
        self.ids: Counter[str] = Counter()
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [found[name] or "" for name in ("src", "href", "srcset", "action") if name in found]
        self.ids.update([found["id"] or ""] if "id" in found else [])
        if tag == "img":
            encoded = (found["src"] or "").removeprefix("data:image/jpeg;base64,")
            self.pictures[found["alt"] or ""] = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
        if tag == "tr":
            self.rows.append([])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def block_means(pixels: np.ndarray) -> np.ndarray:
    """Means of 8×8 pixels, which JPEG keeps also where it cannot keep the noise of an untrained generator."""
    height, width = (side // 8 * 8 for side in pixels.shape[:2])
    return pixels[:height, :width].reshape(height // 8, 8, width // 8, 8, 3).mean(axis=(1, 3))


def translated(slide: Path, model: Path) -> list[object]:
    """The command line that translates a slide and reports on it."""
    options = ("--compression", "deflate", "--method", "in", "--report")
    return ["translate", slide, "-m", model, "-o", slide.with_name("out.ome.tif"), *options, *SMALL]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_generator: Path) -> Path:
    """A slide that has been translated, with its report."""
    slide = write_slide(tmp_path_factory.mktemp("done") / "slide.tif", width=900, height=780)
    made = kin(*translated(slide, tiny_generator))
    assert made.code == 0, made.err
    return slide


@pytest.fixture
def command(tmp_path: Path, tiny_generator: Path) -> list[object]:
    """The same, still to be run, of a smaller slide."""
    return translated(write_slide(tmp_path / "slide.tif", width=260, height=390), tiny_generator)


def test_it_shows_the_pixels_and_the_values_of_both_slides(done: Path) -> None:
    slide = done
    page = Reader(slide.with_name("out.ome.tif.report.html"))
    source = tifffile.imread(slide)
    output = tifffile.imread(slide.with_name("out.ome.tif"))
    for name, pixels in (("source", source), ("translation", output)):
        shown = page.pictures[f"Overview: {name}"]
        assert shown.shape == pixels.shape
        assert np.abs(block_means(shown) - block_means(pixels)).max() < 4
    translation = slide.with_name("out.ome.tif")
    seams = json.loads(kin("seams", translation, "--source", slide, "--patch-size", 128, "--json").out)
    worst = seams["worst"][0]
    x, y = (int(word) for word in re.search(r"1\. 512 × 512 px from (\d+), (\d+)", page.text).groups())  # type: ignore[union-attr]
    assert x <= worst["x"] <= x + 512
    assert y <= worst["y"] <= y + 512
    close = page.pictures["Close-up 1: translation"]
    assert np.abs(block_means(close) - block_means(output[y : y + 512, x : x + 512])).max() < 4


def test_the_seam_results_are_those_of_kin_seams(done: Path) -> None:
    slide = done
    output = slide.with_name("out.ome.tif")
    told = json.loads(kin("seams", output, "--source", slide, "--patch-size", 128, "--tissue", "none", "--json").out)
    alone = json.loads(kin("seams", slide, "--patch-size", 128, "--tissue", "none", "--json").out)
    rows = {row[0]: row for row in Reader(slide.with_name("out.ome.tif.report.html")).rows if row}
    for name, direction in (("all", "both"), ("left | right", "vertical"), ("upper / lower", "horizontal")):
        result, own = (found[direction][told["headline"]] for found in (told, alone))
        assert rows[name][1] == f"{result['ratio_to_source']:.3f}"
        assert rows[name][3:5] == [f"{result['ratio']:.3f}", f"{result['source_ratio']:.3f}"]
        assert [rows[name][5].split()[0], rows[name][6].split()[0]] == [f"{f['excess']:.2f}" for f in (result, own)]
        assert rows[name][7] == str(result["n"])


def test_it_is_one_file_of_a_few_megabytes(done: Path) -> None:
    slide = done
    file = slide.with_name("out.ome.tif.report.html")
    assert file.stat().st_size < 5e6
    page = Reader(file)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "url(" not in file.read_text()
    assert max(page.ids.values()) == 1
    assert all(page.ids[address[1:]] for address in page.addresses if address.startswith("#"))


def test_the_sources_own_results_are_those_of_the_source_alone(done: Path, tmp_path: Path) -> None:
    slide, stepped = done, tifffile.imread(done).copy()
    stepped[:, 128:256] //= 2
    tifffile.imwrite(tmp_path / "stepped.tif", stepped, photometric="rgb", tile=(128, 128))
    with opened(SlideChoice(tmp_path / "stepped.tif")) as view, opened(SlideChoice(slide)) as source:
        options = {"mask": all_tissue(view.size), "progress": SilentProgress(), "workers": 1}
        both = measure_slide_seams(view, SeamChoice(128), source=source, **options)
        alone = measure_slide_seams(source, SeamChoice(128), source=None, **options)
    own = own_results(both)
    assert own == {name: alone.summary.result(both.statistic, name) for name in ("both", "vertical", "horizontal")}
    assert own_results(alone) == {}
    assert verdict(both.summary.result("step", "vertical"), "ΔE") == "obvious"


def test_skip_existing_makes_a_missing_report_and_keeps_a_present_one(tmp_path: Path, command: list[object]) -> None:
    output, report = tmp_path / "out.ome.tif", tmp_path / "out.ome.tif.report.html"
    assert kin(*(word for word in command if word != "--report")).code == 0
    assert not report.exists()
    before = digest(output)
    assert kin(*command, "--skip-existing").code == 0
    made = report.stat().st_mtime_ns
    assert kin(*command, "--skip-existing").code == 0
    assert report.stat().st_mtime_ns == made
    # another run's report is not this one's
    record = tmp_path / "out.ome.tif.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seconds": {"measure": 99.0}}))
    assert kin(*command, "--skip-existing").code == 0
    assert "99.0 s" in Reader(report).text
    assert digest(output) == before


def test_a_report_that_cannot_be_written_leaves_the_output(
    tmp_path: Path, command: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "out.ome.tif.report.html"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kin_cli.report.page.write_atomic", full)
    result = kin(*command)
    assert result.code == 1
    last = result.err.strip().splitlines()[-1]
    assert last.startswith(f"kin: {report}: the report could not be made:")
    assert "--skip-existing" in last
    assert kin("check", tmp_path / "out.ome.tif").code == 0
    monkeypatch.undo()
    assert kin(*command, "--skip-existing").code == 0
    made = {"out.ome.tif", "out.ome.tif.json", "out.ome.tif.report.html"}
    assert {path.name for path in tmp_path.iterdir()} == {"slide.tif"} | made


def test_a_folder_in_the_reports_place_is_told_before_the_work(tmp_path: Path, command: list[object]) -> None:
    (tmp_path / "out.ome.tif.report.html").mkdir()
    result = kin(*command)
    assert result.code == 1
    assert "out.ome.tif.report.html: is a folder" in result.err
    assert not (tmp_path / "out.ome.tif").exists()


def test_a_failure_that_nobody_foresaw_leaves_the_output_too(
    tmp_path: Path, command: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("kin_cli.report.page.gather", fail)
    result = kin(*command)
    assert result.code == 1
    assert "the output is complete" in result.err.strip().splitlines()[-1]
    assert kin("check", tmp_path / "out.ome.tif").code == 0


def test_what_could_not_be_read_is_told(tmp_path: Path, command: list[object]) -> None:
    break_tile(tmp_path / "slide.tif", 7)
    assert kin(*command, "--on-read-error", "fill").code == 1
    assert "could not be read and were filled" in Reader(tmp_path / "out.ome.tif.report.html").text


def test_few_borders_are_not_judged(tmp_path: Path, command: list[object]) -> None:
    assert kin(*command).code == 0
    page = Reader(tmp_path / "out.ome.tif.report.html")
    (row,) = [row for row in page.rows if row and row[0] == "all"]
    assert row[1:5] == ["too few to judge", "–", "–", "–"]
    assert row[7] == "7"  # borders between 2 × 3 patches
    assert "Only 7 borders between patches could be measured, too few to judge" in page.text
    shown = kin("seams", tmp_path / "out.ome.tif", "--source", tmp_path / "slide.tif", "--tissue", "none").out
    assert "too few to judge" in shown
    values = kin("evaluate", tmp_path / "out.ome.tif", "--tissue", "none", "--metrics", "seams", "--json").out
    ratio = json.loads(values)["values"][0]
    assert (ratio["value"], ratio["detail"].endswith("7 borders, too few to judge")) == (None, True)


def test_the_first_sentences_and_the_warnings_are_for_people(done: Path) -> None:
    page = Reader(done.with_name("out.ome.tif.report.html"))
    lead = page.text.partition("virtual stain")[2]
    assert lead.index("borders between patches") < lead.index("image, px") < lead.index("R compares")
    assert "--method kin, the default, leaves none" in page.text  # made with --method in
    assert "100 µm" in page.text  # scale bar of the overview, 900 px of 0.5 µm


@pytest.mark.parametrize("patch", [32, 512])
def test_a_picture_without_borders_to_measure_has_a_report(tmp_path: Path, tiny_generator: Path, patch: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 160, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    output = tmp_path / "out.png"
    made = kin(
        "translate", tmp_path / "photo.png", "-m", tiny_generator, "-o", output, "--patch-size", patch, "--report"
    )
    assert made.code == 0, made.err
    page = Reader(tmp_path / "out.png.report.html")
    assert page.pictures["Close-up 1: source"].shape == pixels.shape
    assert "no tile of 512×512 px" in page.text
    assert ("seams cannot be measured between patches of 32 px" in page.text) == (patch == 32)


def test_a_batch_makes_one_report_a_slide(tmp_path: Path, tiny_generator: Path) -> None:
    for seed, name in enumerate(("one.tif", "two.tif")):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_slide(tmp_path / "in" / name, height=260, seed=seed)
    result = kin("batch", tmp_path / "in", "-o", tmp_path / "out", "-m", tiny_generator, "--report", *SMALL)
    assert result.code == 0, result.err
    assert len(list((tmp_path / "out").glob("*.report.html"))) == 2


def test_the_flag_stands_wherever_a_translation_ends() -> None:
    for name in ("translate", "batch", "assemble"):
        assert any(parameter.name == "report" for parameter in cli.commands[name].params)
