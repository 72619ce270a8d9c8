"""The report in a real browser: the slider moves, every picture is there, nothing is fetched, nothing complains."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.processes import kin
from tests.helpers.slides import write_slide
from tests.helpers.translations import SMALL

_CLIP = "picture => getComputedStyle(picture).clipPath"


@dataclass
class Opened:
    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, tiny_generator: Path) -> Path:
    folder = tmp_path_factory.mktemp("report")
    slide = write_slide(folder / 'a & <b>"c" #1.tif')
    made = kin("translate", slide, "-m", tiny_generator, "-o", folder / "out.ome.tif", "--report", *SMALL)
    assert made.code == 0, made.err
    return folder / "out.ome.tif.report.html"


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    result = Opened(context.new_page())
    result.page.on("request", lambda request: result.requests.append(request.url))
    result.page.on("console", lambda message: result.complaints.append(message.text))
    result.page.on("pageerror", lambda error: result.complaints.append(str(error)))
    result.page.goto(report.as_uri())
    result.page.wait_for_load_state("load")
    yield result
    context.close()


def test_every_picture_loads_and_nothing_is_fetched(opened: Opened, report: Path) -> None:
    widths = opened.page.eval_on_selector_all("img", "all => all.map(img => img.complete ? img.naturalWidth : 0)")
    assert len(widths) >= 4
    assert min(widths) > 0
    others = [url for url in opened.requests if not url.startswith("data:")]
    assert others == [report.as_uri()]
    assert opened.complaints == []


def test_the_slider_is_moved_by_the_keyboard(opened: Opened) -> None:
    after, slider = opened.page.locator("img.after").first, opened.page.locator(".compare input").first
    assert after.evaluate(_CLIP) == "inset(0px 0px 0px 50%)"
    slider.focus()
    opened.page.keyboard.press("ArrowRight")
    assert after.evaluate(_CLIP) == "inset(0px 0px 0px 51%)"
    opened.page.keyboard.press("End")
    assert after.evaluate(_CLIP) == "inset(0px 0px 0px 100%)"
    assert slider.get_attribute("aria-valuetext") == "0 % translation"


def test_the_slider_is_dragged_to_where_the_mouse_is(opened: Opened) -> None:
    opened.page.locator(".compare").last.scroll_into_view_if_needed()
    box = opened.page.locator(".compare").last.bounding_box()
    y = box["y"] + box["height"] / 2
    opened.page.mouse.move(box["x"] + box["width"] / 2, y)
    opened.page.mouse.down()
    for fraction in (0.4, 0.3, 0.2):
        opened.page.mouse.move(box["x"] + fraction * box["width"], y)
    opened.page.mouse.up()
    edge = opened.page.locator(".compare .edge").last.bounding_box()
    assert edge["x"] + edge["width"] / 2 == pytest.approx(box["x"] + 0.2 * box["width"], abs=2)


def test_names_from_the_user_are_text(opened: Opened) -> None:
    assert opened.page.locator("h1").text_content() == 'a & <b>"c" #1.tif'
    assert opened.page.locator("b").count() == 0


def test_each_picture_and_slider_says_what_it_is(opened: Opened) -> None:
    assert all(opened.page.eval_on_selector_all("img", "all => all.map(img => img.alt)"))
    assert all(opened.page.eval_on_selector_all("input", "all => all.map(i => i.ariaLabel)"))
    spots = opened.page.eval_on_selector_all(".spot", "all => all.map(a => a.getAttribute('href'))")
    assert spots
    assert all(opened.page.locator(spot).count() == 1 for spot in spots)


def test_it_is_dark_in_the_dark_and_shows_both_pictures_in_print(opened: Opened) -> None:
    def paper() -> str:
        return opened.page.evaluate("getComputedStyle(document.body).backgroundColor")

    opened.page.emulate_media(color_scheme="dark")
    assert paper() == "rgb(22, 24, 27)"
    opened.page.emulate_media(media="print")
    assert paper() == "rgb(255, 255, 255)"
    first, second = (opened.page.locator(f"img.{name}").first for name in ("before", "after"))
    assert second.evaluate(_CLIP) == "none"
    one, other = first.bounding_box(), second.bounding_box()
    assert one["width"] == pytest.approx(other["width"], abs=1)
    assert other["x"] > one["x"] + 0.9 * one["width"]


def test_nothing_is_wider_than_a_small_screen(opened: Opened) -> None:
    for width in (400, 360, 320):
        opened.page.set_viewport_size({"width": width, "height": 800})
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        wider = "all => all.filter(box => box.scrollWidth > box.clientWidth).length"
        assert opened.page.eval_on_selector_all(".wide", wider) == 0
    names = opened.page.locator("td[data-name='95 % interval']").first
    assert names.evaluate("cell => getComputedStyle(cell, '::before').content") == '"95 % interval"'


@pytest.mark.parametrize("width", [1200, 360])
def test_a_scale_bar_is_as_long_as_it_says(opened: Opened, width: int) -> None:
    opened.page.set_viewport_size({"width": width, "height": 800})
    picture, bar = (opened.page.locator(f".compare {part}").first for part in ("img", ".scale"))
    assert bar.text_content() == "50 µm"
    pixels = bar.bounding_box()["width"] / picture.bounding_box()["width"] * 520  # the slide has 0.5 µm/px
    assert pixels * 0.5 == pytest.approx(50, rel=0.02)


def test_it_tells_how_to_look_closer(opened: Opened, report: Path) -> None:
    told = opened.page.locator("code", has_text="kin view").text_content()
    assert "out.ome.tif" in shlex.split(told)[3]
    assert opened.page.locator('a[href$="index.html"]').count() == 0
