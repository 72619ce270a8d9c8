"""Option values as people type them, and settings files."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'kernel = "gau\xff"', ("not UTF-8", "byte 13")),
        (b'kernel = "1"\nkernel = "3"', ("'kernel'", "more than once")),
        (b"model = 5", ("'model'", "wrong type (int)", "a text in quotes")),
        (b"tissue = []", ("'tissue'", "wrong type (list)")),
        (b"table = true", ("'table'", "wrong type (bool)")),
        (b'kernel = ["1"]', ("'kernel'", "wrong type (list)")),
        (b"kernel = [1, 2]", ("'kernel'", "is not known")),
        (b"kernel = 2020-01-01", ("'kernel'", "wrong type (date)")),
        (b"seamless = 3", ("'seamless'", "true or false")),
        (b'seamless = "maybe"', ("'seamless'", "true or false")),
        (b"workers = 2.5", ("'workers'", "2.5")),
        (b"quality = true", ("'quality'", "wrong type (bool)")),
        (b"quality = 900", ("'quality'", "900")),
        (b"device = 3", ("'device'", "wrong type (int)")),
        (b'mpp = "abc"', ("'mpp'", "abc")),
        (b"patch-size = 64\npatch_size = 128", ("'patch_size'", "second time")),
        (b'model = "a\\u0000b"', ("'model'", "NUL")),
        (b'[translate]\nkernel = "1"', ("unknown key 'translate'", "kernel")),
        (b"a = " + b"[" * 100_000, ("nested too deeply",)),
        (b"quality = " + b"9" * 5000, ("kin.toml",)),
    ],
)
def test_a_value_in_a_settings_file_that_cannot_be_used_is_named(
    picture: Path, tiny_generator: Path, content: bytes, words: tuple[str, ...]
) -> None:
    config = picture.parent / "kin.toml"
    config.write_bytes(content)
    result = kin("translate", picture, "-m", tiny_generator, "--config", config)
    assert_refused(result, "kin.toml", *words, code=2)
    assert len(list(picture.parent.iterdir())) == 2


def test_a_settings_file_takes_what_flags_take(picture: Path, tiny_generator: Path) -> None:
    config = picture.parent / "kin.toml"
    config.write_bytes(
        b"\xef\xbb\xbfpatch-size = 64\nregion = [0, 0, 128, 64]\nsubsampling = 444\nkernel = 1\njson = true\n"
        b'num-workers = "2"\n'
    )
    result = kin("translate", picture, "-m", tiny_generator, "--config", config, "--dry-run")
    assert result.code == 0, result.err
    assert json.loads(result.out)["size"] == [128, 64]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KIN_TRANSLATE_WORKERS", "two"),
        ("KIN_TRANSLATE_QUALITY", "900"),
        ("KIN_TRANSLATE_SEAMLESS", "perhaps"),
        ("KIN_TRANSLATE_KERNEL", "foo"),
        ("KIN_TRANSLATE_REGION", "1,2"),
        ("KIN_TRANSLATE_METHOD", "xyz"),
        ("KIN_TRANSLATE_HALO", "-1"),
    ],
)
def test_a_variable_with_a_wrong_value_is_named(picture: Path, variable: str, value: str) -> None:
    assert_refused(kin("translate", picture, **{variable: value}), variable, value, code=2)


def test_a_flag_with_a_wrong_value_names_no_variable(picture: Path) -> None:
    result = kin("translate", picture, "--quality", "900", KIN_TRANSLATE_QUALITY="80")
    assert_refused(result, "--quality", code=2)
    assert "KIN_" not in result.err
