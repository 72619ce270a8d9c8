"""The page in a real browser: curtain, locked panes, layers, addresses; its pixels are the file's."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from PIL import Image

from kin_cli.geometry import Box
from kin_cli.progress import SilentProgress
from kin_cli.slide.open import open_slide
from kin_cli.view.app import ViewApp, export
from kin_cli.view.http import WebServer
from kin_cli.view.layers import ViewChoice, opened_layers
from tests.helpers.pages import Opened, opened_page, serving

READY = (
    "KinView.images.length > 0 && KinView.panes.every("
    "p => p.viewer.world.getItemCount() && p.viewer.world.getItemAt(0).getFullyLoaded())"
)
DRAWN = (
    "(() => { const c = KinView.panes[0].marks;"
    " return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v) })()"
)
NAMES = (
    "[...document.querySelectorAll('button, select, input')].map("
    "e => e.ariaLabel || e.textContent.trim() || e.closest('label')?.textContent)"
)
VIEWS = "KinView.panes.map(p => p.view)"


@pytest.fixture(scope="module")
def server(shown: tuple[Path, Path, Path]) -> Iterator[WebServer]:
    with opened_layers(ViewChoice(shown[0], shown[1:])) as layers:
        app = ViewApp(layers, lossless=True)
        with serving(app) as running:
            yield running
        app.close()


@pytest.fixture
def opened(browser: Any, server: WebServer) -> Iterator[Opened]:
    with opened_page(browser, server.address("secret")) as found:
        found.until(READY)
        yield found
        assert found.complaints == []
        others = [url for url in found.requests if not url.startswith((server.address("secret"), "data:", "blob:"))]
        assert others == []


def go(opened: Opened, server: WebServer, **place: object) -> None:
    """Go to a place by its address."""
    hash_ = "&".join(f"{name}={value}" for name, value in place.items())
    opened.page.evaluate(f"location.hash = {hash_!r}")
    opened.page.wait_for_timeout(100)
    opened.until(READY)
    opened.page.wait_for_timeout(150)


def canvas(opened: Opened, pane: int = 0) -> np.ndarray:
    """What the pane's own canvas shows."""
    address = opened.page.evaluate(f"KinView.panes[{pane}].viewer.drawer.canvas.toDataURL('image/png')")
    shown = Image.open(BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGBA")
    on_green = Image.alpha_composite(Image.new("RGBA", shown.size, (0, 255, 0, 255)), shown)  # holes and lines show
    return np.asarray(on_green.convert("RGB"), np.int16)


def test_pixels_on_the_screen_are_the_files_at_its_own_levels(
    opened: Opened, server: WebServer, shown: tuple[Path, Path, Path]
) -> None:
    for number, file in enumerate(shown):
        with open_slide(file) as slide:
            for level, downsample in enumerate((1, 2, 4)):
                go(opened, server, x=1024, y=768, z=1 / downsample, mode="single", left=number)
                screen = canvas(opened)
                height, width = screen.shape[:2]
                # the middle of the screen is the middle of the slide
                size = slide.levels[level]
                side = 150
                found = screen[height // 2 - side : height // 2 + side, width // 2 - side : width // 2 + side]
                box = Box(size.width // 2 - side, size.height // 2 - side, 2 * side, 2 * side)
                assert np.abs(found - slide.read(level, box)).max() <= 1


@pytest.fixture(scope="module")
def stored_jpeg(tmp_path_factory: pytest.TempPathFactory, shown: tuple[Path, Path, Path]) -> Iterator[tuple[Path, Any]]:
    """A pyramid of JPEG tiles, and a server of it and of one of a single colour."""
    folder = tmp_path_factory.mktemp("jpeg")
    with open_slide(shown[0]) as slide:
        size = slide.levels[0]
        textured = slide.read(0, Box(0, 0, size.width - 96, size.height - 56))
    flat = np.full_like(textured, (200, 100, 150))
    for name, pixels in (("textured.tif", textured), ("flat.tif", flat)):
        image = pyvips.Image.new_from_array(pixels)
        image.tiffsave(str(folder / name), tile=True, pyramid=True, compression="jpeg", tile_width=240, tile_height=240)
    with opened_layers(ViewChoice(folder / "textured.tif", (folder / "flat.tif",))) as layers:
        app = ViewApp(layers)
        with serving(app) as running:
            yield folder / "textured.tif", running
        app.close()


def test_stored_jpeg_is_shown_as_every_reader_decodes_it(browser: Any, stored_jpeg: tuple[Path, Any]) -> None:
    path, server = stored_jpeg
    with opened_page(browser, server.address("secret")) as opened, open_slide(path) as slide:
        opened.until(READY)
        full = slide.levels[0]
        for level in (0, 1, 2):
            size = slide.levels[level]
            for right in (False, True):  # the middle, and the lower right corner, whose tiles are larger than the slide
                side = min(150, size.height // 2)
                x, y = (size.width - side, size.height - side) if right else (size.width // 2, size.height // 2)
                place = {"x": x * full.width / size.width, "y": y * full.height / size.height}
                go(opened, server, **place, z=size.width / full.width, mode="single", left=0)
                screen = canvas(opened)
                height, width = screen.shape[:2]
                found = screen[height // 2 - side : height // 2 + side, width // 2 - side : width // 2 + side]
                expected = slide.read(level, Box(x - side, y - side, 2 * side, 2 * side))
                assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("dots", [1, 1.5])
def test_no_line_shows_between_tiles_at_any_zoom(browser: Any, stored_jpeg: tuple[Path, Any], dots: float) -> None:
    server = stored_jpeg[1]
    with opened_page(browser, server.address("secret"), device_scale_factor=dots) as opened:
        opened.until(READY)
        for zoom in (0.301, 0.613, 0.7777, 1.31, 3.3):
            for mode, left, right in (("single", 1, 0), ("blend", 0, 1)):
                go(
                    opened,
                    server,
                    x=961.3,
                    y=733.7,
                    z=zoom,
                    mode=mode,
                    left=left,
                    right=right,
                    at=1 if left == 0 else 0.4,
                )
                screen = canvas(opened)
                height, width = screen.shape[:2]
                across, down = (
                    int(min(side, length * zoom * dots - 40) / 2) for side, length in ((width, 1900), (height, 1400))
                )
                found = screen[height // 2 - down : height // 2 + down, width // 2 - across : width // 2 + across]
                assert np.abs(found - [200, 100, 150]).max() <= 2, (zoom, mode)


def test_the_curtain_moves_by_mouse_and_keys(opened: Opened, server: WebServer, shown: tuple[Path, Path, Path]) -> None:
    go(opened, server, x=1024, y=768, z=1, mode="curtain", left=0, right=1, at=0.5)
    box = opened.page.locator(".curtain").bounding_box()
    stage = opened.page.locator(".pane").bounding_box()
    opened.page.mouse.move(box["x"] + 22, box["y"] + 300)
    opened.page.mouse.down()
    opened.page.mouse.move(stage["x"] + 0.25 * stage["width"], box["y"] + 250, steps=4)
    opened.page.mouse.up()
    assert opened.page.evaluate("KinView.state.at") == pytest.approx(0.25, abs=0.01)
    opened.page.wait_for_timeout(200)
    screen = canvas(opened)
    height, width = screen.shape[:2]
    edge = round(opened.page.evaluate("KinView.state.at") * width)
    left = 1024 - width // 2
    with open_slide(shown[0]) as source, open_slide(shown[1]) as made:
        for slide, start, end in ((source, 10, edge - 3), (made, edge + 3, width - 10)):
            box = Box(left + start, 768 - height // 2 + 100, end - start, 200)
            assert np.abs(screen[100:300, start:end] - slide.read(0, box)).max() <= 1
    opened.page.locator(".curtain").focus()
    opened.page.keyboard.press("End")
    assert opened.page.evaluate("KinView.state.at") == 1
    opened.page.keyboard.press("PageDown")
    assert opened.page.locator(".curtain").get_attribute("aria-valuenow") == "90"


def test_blend_mixes_both(opened: Opened, server: WebServer, shown: tuple[Path, Path, Path]) -> None:
    go(opened, server, x=1024, y=768, z=1, mode="blend", left=0, right=1, at=0.5)
    screen = canvas(opened)
    height, width = screen.shape[:2]
    box = Box(1024 - 100, 768 - 100, 200, 200)
    with open_slide(shown[0]) as source, open_slide(shown[1]) as made:
        mean = (source.read(0, box).astype(float) + made.read(0, box)) / 2
    found = screen[height // 2 - 100 : height // 2 + 100, width // 2 - 100 : width // 2 + 100]
    assert np.abs(found - mean).max() <= 1.5


def test_panes_stay_locked_whichever_leads(opened: Opened) -> None:
    opened.page.keyboard.press("2")
    opened.until(f"KinView.panes.length === 3 && {READY}")
    for pane in (0, 2):
        box = opened.page.locator(".pane").nth(pane).bounding_box()
        x, y = box["x"] + box["width"] / 3, box["y"] + box["height"] / 3
        opened.page.mouse.move(x, y)
        before = opened.page.evaluate(VIEWS)
        opened.page.mouse.wheel(0, -400)
        opened.page.wait_for_timeout(600)
        opened.page.mouse.down()
        opened.page.mouse.move(x + 60, y + 40, steps=5)
        opened.page.mouse.up()
        opened.page.wait_for_timeout(800)
        views = opened.page.evaluate(VIEWS)
        assert views[pane]["z"] > 1.2 * before[pane]["z"]
        for view in views:
            assert view == pytest.approx(views[pane], rel=1e-6)


def test_the_place_is_in_the_address_and_comes_back(browser: Any, server: WebServer, opened: Opened) -> None:
    go(opened, server, x=700, y=500, z=0.8, mode="curtain", left=2, right=1, at=0.3)
    opened.page.keyboard.press("ArrowRight")
    opened.page.wait_for_timeout(900)
    view, address = opened.page.evaluate("KinView.panes[0].view"), opened.page.evaluate("location.href")
    assert view["x"] == pytest.approx(800, abs=1)
    with opened_page(browser, address) as again:
        again.until(READY)
        assert again.page.evaluate("KinView.panes[0].view") == pytest.approx(view, rel=1e-3)
        assert again.page.evaluate("[KinView.state.left, KinView.state.right, KinView.state.at]") == [2, 1, 0.3]
        assert again.page.locator(".name").all_text_contents() == ['a <b>"c" & #1.tif', "steps.tif"]


@pytest.mark.parametrize(
    "hash_", ["x=NaN&y=1&z=1", "mode=none&left=99&at=7", "z=-1&x=1&y=1", "z=1e300&x=1e300&y=0", "%%%", "<b>"]
)
def test_a_broken_address_does_no_harm(browser: Any, server: WebServer, hash_: str) -> None:
    with opened_page(browser, f"{server.address('secret')}#{hash_}") as found:
        found.until("KinView.images.length > 0")
        found.page.wait_for_timeout(100)
        assert found.complaints == []


def test_seams_are_drawn_listed_and_jumped_to(opened: Opened) -> None:
    opened.page.keyboard.press("s")
    opened.until("document.querySelectorAll('#borders button').length > 0")
    assert opened.page.locator("#borders button").count() == 17
    opened.page.locator("#borders button").nth(1).click()
    opened.page.wait_for_timeout(800)
    line = opened.page.evaluate("KinView.findings['seams/1'].worst[1]")
    middle = (line[0] + (0 if line[2] else 256), line[1] + (256 if line[2] else 0))
    view = opened.page.evaluate("KinView.panes[0].view")
    assert (view["x"], view["y"], view["z"]) == pytest.approx((*middle, 1), abs=0.5)
    assert opened.page.evaluate(DRAWN)
    opened.page.keyboard.press("n")
    assert opened.page.locator("#borders button[aria-current=true]").text_content().startswith("3.")
    opened.page.keyboard.press("s")
    assert not opened.page.evaluate(DRAWN)
    opened.page.keyboard.press("t")
    opened.until(DRAWN)


def test_controls_have_names_and_fit_a_small_screen(opened: Opened) -> None:
    assert all(opened.page.evaluate(NAMES))
    opened.page.set_viewport_size({"width": 360, "height": 740})
    for mode in "1234":
        opened.page.keyboard.press(mode)
        opened.until(READY)
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
        assert opened.page.locator(".pane").first.bounding_box()["height"] > 100


def test_the_copy_opens_from_disk(browser: Any, shown: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with opened_layers(ViewChoice(shown[0], shown[1:2])) as layers:
        export(layers, tmp_path / "copy #1", lossless=False, seams=True, progress=SilentProgress(), workers=2)
    with opened_page(browser, (tmp_path / "copy #1" / "index.html").as_uri()) as found:
        found.until(READY)
        found.page.keyboard.press("s")
        found.page.keyboard.press("t")
        found.until("document.querySelectorAll('#borders button').length === 17")
        assert all(url.startswith(("file:", "data:")) for url in found.requests)
        assert found.complaints == []


def test_fingers_pan_and_zoom(browser: Any, server: WebServer) -> None:
    with opened_page(browser, server.address("secret"), width=390, height=800, has_touch=True) as found:
        found.until(READY)
        found.page.keyboard.press("4")
        found.until(READY)
        before = found.page.evaluate("KinView.panes[0].view")
        session = found.page.context.new_cdp_session(found.page)

        def touch(kind: str, *points: tuple[float, float]) -> None:
            told = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": told})
            found.page.wait_for_timeout(30)

        touch("touchStart", (180, 450), (210, 450))
        for spread in range(20, 120, 20):
            touch("touchMove", (180 - spread, 450), (210 + spread, 450))
        touch("touchEnd")
        found.page.wait_for_timeout(600)
        assert found.page.evaluate("KinView.panes[0].view")["z"] > 1.5 * before["z"]
        assert found.complaints == []
