"""Option values as people type them, and settings files."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kin_cli.commands.parameters import AutoInt, KernelType, RegionType, SizeType, TissueType, auto_as_none
from kin_cli.geometry import Box, Size
from kin_cli.norm.kernel import Kernel
from tests.helpers.processes import assert_refused, kin

whole, positive = st.integers(-(10**6), 10**6), st.integers(1, 10**6)


@given(whole, whole, positive, positive)
def test_regions_and_sizes_come_back(x: int, y: int, width: int, height: int) -> None:
    assert RegionType()(f"{x},{y}, {width},{height}") == Box(x, y, width, height)
    assert SizeType()(f"{width}X{height}") == Size(width, height)
    assert SizeType()(str(width)) == Size(width, width)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,2,3,4", "1.5,2,3,4", "0,0,0,5", "0,0,5,-1"])
def test_what_is_no_region(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a region"):
        RegionType()(text)


@pytest.mark.parametrize("text", ["", "x", "0", "10x", "x10", "10x0", "10x20x30", "ten"])
def test_what_is_no_size(text: str) -> None:
    if text == "10x":  # nothing after the x is a square
        assert SizeType()(text) == Size(10, 10)
        return
    with pytest.raises(click.BadParameter, match="is not a size"):
        SizeType()(text)


def test_numbers_or_auto() -> None:
    assert [AutoInt()(text) for text in ("0", "17", "auto", "AUTO")] == [0, 17, "auto", "auto"]
    assert [auto_as_none(value) for value in (0, 17, "auto", None)] == [0, 17, None, None]
    for text in ("-1", "1.5", "", "automatic"):
        with pytest.raises(click.BadParameter, match="nor auto"):
            AutoInt()(text)


def test_kernels_and_masks() -> None:
    assert KernelType()("gaussian:5:1.5") == Kernel("gaussian", 5, 1.5)
    assert [TissueType()(text) for text in ("auto", "none", "Auto.png")] == ["auto", "none", Path("Auto.png")]


def test_unknown_keys_in_a_settings_file_are_refused(picture: Path, tiny_generator: Path) -> None:
    config = picture.parent / "kin.toml"
    config.write_text("kernal = 3\n")
    assert_refused(kin("translate", picture, "-m", tiny_generator, "--config", config), "kin.toml", "kernal", code=2)
    config.write_text("kernel = \n")
    assert_refused(kin("translate", picture, "-m", tiny_generator, "--config", config), "kin.toml", "TOML", code=2)
    assert_refused(kin("translate", picture, "-m", tiny_generator, "--config", "absent.toml"), "absent.toml", code=2)
