"""The procedural slide as a file: its pixels, its levels, and the same file every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from kin_cli.errors import OutputError
from kin_cli.geometry import Box, Size
from kin_cli.progress import SilentProgress
from kin_cli.sample import write_sample
from kin_cli.settings import OutputSettings
from kin_cli.slide.synthetic import SampleSlide
from tests.helpers.progress import Killed, Watcher, die_at

SIZE = Size(1300, 1100)


def write(path: Path, *, seed: int = 3, workers: int = 1, progress: object = None, **output: object) -> Path:
    settings = OutputSettings(path, **output)  # type: ignore[arg-type]
    write_sample(settings, SIZE, seed=seed, workers=workers, progress=progress or SilentProgress())  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("name", ["a.ome.tif", "a.tif", "a.png"])
def test_the_file_holds_the_slide(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, compression="deflate")
    expected = SampleSlide(SIZE, seed=3).read(0, Box(0, 0, SIZE.width, SIZE.height))
    found = np.asarray(Image.open(path)) if name.endswith("png") else tifffile.imread(path)
    np.testing.assert_array_equal(found, expected)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_viewer_sees_a_pyramid_at_half_a_micrometre(tmp_path: Path) -> None:
    with openslide.OpenSlide(write(tmp_path / "a.tif")) as slide:
        assert slide.level_dimensions == ((1300, 1100), (650, 550))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)


def test_seed_and_size_decide_the_bytes_and_interruptions_do_not(tmp_path: Path) -> None:
    for folder in ("one", "two", "other"):
        (tmp_path / folder).mkdir()
    one = write(tmp_path / "one" / "a.tif").read_bytes()
    with pytest.raises(Killed):
        write(tmp_path / "two" / "a.tif", progress=Watcher(die_at("sample", 4)))
    again = Watcher()
    assert write(tmp_path / "two" / "a.tif", workers=3, progress=again).read_bytes() == one
    assert write(tmp_path / "other" / "a.tif", seed=4).read_bytes() != one


def test_nothing_is_replaced_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"dear")
    with pytest.raises(OutputError, match="exists already"):
        write(tmp_path / "a.tif")
    assert (tmp_path / "a.tif").read_bytes() == b"dear"
    assert write(tmp_path / "a.tif", overwrite=True).stat().st_size > 1000
