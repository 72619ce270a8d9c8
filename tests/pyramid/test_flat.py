from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kin_cli.errors import OutputError, UsageError
from kin_cli.geometry import Size
from kin_cli.pyramid import writer as flat
from kin_cli.pyramid.check import check_file
from kin_cli.pyramid.codec import Codec, Pixels
from kin_cli.pyramid.layout import PyramidLayout
from kin_cli.pyramid.writer import write_flat
from kin_cli.store.blobs import BlobStore
from tests.helpers.pyramid_images import ICC, LOSSLESS, info, layout_of, picture, put_base


def saved(destination: Path, image: Pixels, *, codec: Codec = LOSSLESS, mpp: float | None = 0.5) -> Path:
    layout = layout_of(image, 64, 4096)
    folder = destination.with_name("store")
    folder.mkdir()
    with BlobStore(folder, "tiles", capacity=layout.tile_count) as store:
        put_base(store, image, layout, codec, layout.grid(0))
        write_flat(store, layout, codec=codec, info=info(mpp, ICC), destination=destination)
    assert sorted(path.name for path in folder.iterdir()) == ["tiles-0.dat", "tiles-0.journal"]
    return destination


@pytest.mark.parametrize("mpp", [0.5, None])
def test_png_holds_the_very_pixels(tmp_path: Path, mpp: float | None) -> None:
    image = picture(333, 222)
    path = saved(tmp_path / "a [1].png", image, mpp=mpp)
    with Image.open(path) as png:
        assert np.array_equal(np.asarray(png), image)
        assert png.info["icc_profile"] == ICC
        dpi = 72 if mpp is None else 25.4e3 / mpp
        assert png.info["dpi"] == pytest.approx((dpi, dpi), rel=1e-3)
    assert check_file(path) == []


@pytest.mark.parametrize(("subsampling", "luma"), [("420", (2, 2)), ("444", (1, 1))])
def test_jpeg_has_the_quality_and_subsampling_of_the_codec(
    tmp_path: Path, subsampling: str, luma: tuple[int, int]
) -> None:
    image = picture(333, 222)
    codec = Codec("deflate", quality=93, subsampling="420" if subsampling == "420" else "444")
    path = saved(tmp_path / "a.jpg", image, codec=codec)
    with Image.open(path) as jpeg:
        assert abs(np.asarray(jpeg).astype(int) - image).mean() < 1.5
        assert jpeg.info["icc_profile"] == ICC
        assert jpeg.layer[0][1:3] == luma  # type: ignore[attr-defined]
        assert jpeg.info["dpi"] == pytest.approx((50800, 50800), rel=1e-3)
    assert check_file(path) == []


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_truncation_is_found(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, picture(333, 222))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 9 // 10])
    (problem,) = check_file(path)
    assert problem.startswith("does not decode: ")


def test_too_large_for_a_jpeg(tmp_path: Path) -> None:
    layout = PyramidLayout(Size(65_501, 1), 16, 1 << 20)
    with (
        BlobStore(tmp_path, "tiles", capacity=layout.tile_count) as store,
        pytest.raises(OutputError, match=r"65501×1 pixels are more than a JPEG can hold .*\.ome\.tif"),
    ):
        write_flat(store, layout, codec=LOSSLESS, info=info(), destination=tmp_path / "a.jpg")


def test_no_name_for_a_photograph(tmp_path: Path) -> None:
    layout = PyramidLayout(Size(5, 5), 16)
    with BlobStore(tmp_path, "tiles", capacity=1) as store, pytest.raises(UsageError, match="PNG or JPEG"):
        write_flat(store, layout, codec=LOSSLESS, info=info(), destination=tmp_path / "a.tif")


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "check_flat", lambda *_: ["rotten"])
    with pytest.raises(OutputError, match="was written wrongly: rotten"):
        saved(tmp_path / "a.png", picture(50, 40))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["store", "tiles-0.dat", "tiles-0.journal"]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from test_pyramid_flat import *\n"
        "image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)\n"
        "real = flat._convert\n"
        "def limited(*arguments):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "    real(*arguments)\n"
        "flat._convert = limited\n"
        "saved(Path(sys.argv[1]) / 'a.png', image)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "OutputError" in run.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
