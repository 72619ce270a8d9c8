"""The app of the page and its static copy: addresses that exist and those that do not."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from http import HTTPStatus
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kin_cli.errors import OutputError
from kin_cli.geometry import Box, Grid
from kin_cli.passes.trust import TrustMap, map_geojson
from kin_cli.progress import SilentProgress
from kin_cli.slide.open import open_slide
from kin_cli.slide.view import open_view
from kin_cli.view.app import ViewApp, export, new_folder
from kin_cli.view.findings import trust_of
from kin_cli.view.http import Refusal, Request
from kin_cli.view.layers import Layer, ViewChoice, opened_layers
from tests.helpers.processes import assert_refused, kin


@pytest.fixture(scope="module")
def layers(shown: tuple[Path, Path, Path]) -> Iterator[list[Layer]]:
    with opened_layers(ViewChoice(shown[0], shown[1:])) as found:
        yield found


@pytest.fixture(scope="module")
def app(layers: list[Layer]) -> Iterator[ViewApp]:
    made = ViewApp(layers)
    yield made
    made.close()


def get(app: ViewApp, path: str) -> bytes:
    return app.answer(Request("GET", "secret", path)).body


def test_the_page_and_its_files(app: ViewApp) -> None:
    page = get(app, "").decode()
    for name in ("page.css", "panes.js", "viewer.js", "openseadragon.min.js", "layers.js"):
        assert name in page
        assert get(app, name)
    content = get(app, "layers.js").decode()
    assert "<b>" not in content
    told = json.loads(content.removeprefix("window.KIN = ").rstrip(";\n"))
    assert [layer["name"] for layer in told["layers"]] == ["source.tif", "steps.tif", 'a <b>"c" & #1.tif']


def test_tiles_are_the_pixels_of_the_file(app: ViewApp, shown: tuple[Path, Path, Path]) -> None:
    with open_slide(shown[1]) as slide:
        expected = slide.read(0, Box(256, 256, 256, 256))
        tile = np.asarray(Image.open(BytesIO(get(app, "tiles/1/3/1_1.png"))))
        np.testing.assert_array_equal(tile, expected)
        lossy = np.asarray(Image.open(BytesIO(get(app, "tiles/1/3/1_1.jpg"))), float)
        assert np.abs(lossy - expected).mean() < 1


@pytest.mark.parametrize(
    "path",
    [
        "tiles/9/0/0_0.jpg",
        "tiles/0/1000000/0_0.jpg",
        "tiles/0/999/0_0.jpg",
        "tiles/0/2/9999999_0.jpg",
        "tiles/0/2/0_9999999.jpg",
        "tiles/0/2/-1_0.jpg",
        "tiles/0/2/0_0.gif",
        "tiles/0/2/0_0.jpg/",
        "tiles/0/2/\u0661_0.jpg",
        "../../etc/passwd",
        "tiles/../../../etc/passwd",
        "..\\..\\x",
        "page.css\0",
        "findings/seams/0.json",
        "findings/seams/77.json",
        "findings/../x.json",
        "index.html/../../x",
    ],
)
def test_there_is_nothing_else(app: ViewApp, path: str) -> None:
    with pytest.raises(Refusal) as refusal:
        get(app, path)
    assert refusal.value.status == HTTPStatus.NOT_FOUND


def test_nothing_can_be_sent(app: ViewApp) -> None:
    with pytest.raises(Refusal):
        app.answer(Request("POST", "secret", "", b"{}"))


def finding(app: ViewApp, name: str) -> dict[str, object]:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found: dict[str, object] = json.loads(get(app, f"findings/{name}.json"))
        if "fraction" not in found:
            return found
        time.sleep(0.05)
    raise TimeoutError(name)


def test_seams_and_tissue_are_found_when_asked_for(app: ViewApp) -> None:
    seams = finding(app, "seams/1")
    assert seams["control"] is True
    assert len(seams["lines"]) == 17  # 3 rows of 3 vertical borders, 2 rows of 4 horizontal ones
    assert all(line[3] > 3 for line in seams["worst"])
    plain = finding(app, "seams/2")
    assert max(line[3] for line in plain["lines"]) < 0.5
    tissue = finding(app, "tissue")
    assert 0.3 < tissue["tissue"] <= 1
    assert tissue["image"].startswith("data:image/png;base64,")


def test_a_copy_holds_every_tile(layers: list[Layer], tmp_path: Path) -> None:
    count = export(layers, tmp_path / "copy", lossless=True, seams=False, progress=SilentProgress(), workers=2)
    tiles = list((tmp_path / "copy" / "tiles").rglob("*.png"))
    assert len(tiles) == count == 3 * (48 + 12 + 4 + 1)
    content = (tmp_path / "copy" / "layers.js").read_text()
    told = json.loads(content.removeprefix("window.KIN = ").rstrip(";\n"))
    assert set(told["findings"]) == {"tissue"}
    assert not list(tmp_path.glob(".*"))


def test_nothing_is_replaced_or_left_half_written(layers: list[Layer], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for taken in (tmp_path / "full", tmp_path / "full" / "mine.txt", tmp_path / "no" / "folder"):
        with pytest.raises(OutputError):
            export(layers, taken, lossless=False, seams=False, progress=SilentProgress(), workers=1)

    def fail(draft: Path) -> int:
        (draft / "part").touch()
        raise OSError(28, "no space")

    with pytest.raises(OutputError, match="space"):
        new_folder(tmp_path / "fails", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_command_exports_and_refuses(shown: tuple[Path, Path, Path], tmp_path: Path) -> None:
    made = kin("view", shown[0], "--mpp", "2", "--export", tmp_path / "copy")
    assert made.code == 0, made.err
    assert made.out.endswith("5 tiles\n")
    assert_refused(kin("view", shown[0], "--export", tmp_path / "copy"), "exists already")
    assert_refused(kin("view", shown[0], "--export", shown[0]), "is a file of a slide that is shown", code=2)
    assert_refused(kin("view", tmp_path / "missing.tif"), "missing.tif", code=1)
    assert_refused(kin("view", shown[0], "--real", shown[1]), "--registration", code=2)
    assert_refused(kin("view", shown[0], "--mpp", "nan"), "positive", code=2)


def test_the_trust_map_beside_a_translation_is_a_layer(tmp_path: Path, shown: tuple[Path, Path, Path]) -> None:
    steps = tmp_path / "steps.tif"
    steps.write_bytes(shown[1].read_bytes())
    with opened_layers(ViewChoice(shown[0], (steps,))) as layers:
        assert "no trust map" in trust_of(layers[1])["error"]
        view = open_view(layers[1].picture.slide)
        percentile = np.full((3, 4), 0.5, np.float32)
        percentile[1, 2] = 1e-5
        none = np.zeros((3, 4), np.int8)
        found = TrustMap(Grid(view.size, 512), percentile, none, np.full((3, 4), 0.5, np.float32), 0.01, "fp32")
        (tmp_path / "steps.tif.trust.geojson").write_bytes(map_geojson(found, view, output="steps.tif"))
        made = trust_of(layers[1])
        assert made["text"] == "8.3 % of the tissue is below 1 % (1 of 12 patches)"
        assert (made["width"], made["height"]) == (2048, 1536)
        pixels = np.asarray(Image.open(BytesIO(base64.b64decode(made["image"].partition(",")[2]))))
        assert pixels.shape == (3, 4, 4)
        assert pixels[1, 2, 0] > pixels[0, 0, 0]
        app = ViewApp(layers)
        try:
            while "fraction" in (answer := json.loads(get(app, "findings/trust/1.json"))):
                time.sleep(0.01)
            assert answer == made
        finally:
            app.close()
