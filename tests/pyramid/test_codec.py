from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from kin_cli.errors import UsageError
from kin_cli.pyramid.codec import Codec, halved
from tests.helpers.pictures import smooth_picture


def means_of_four(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    height, width = pixels.shape[:2]
    return pixels.astype(int).reshape(height // 2, 2, width // 2, 2, 3).sum((1, 3)) / 4


def test_deflate_is_lossless_also_for_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    codec = Codec("deflate")
    assert np.array_equal(codec.decode(codec.encode(noise), 48), noise)
    assert np.array_equal(codec.decode_half(codec.encode(noise), 48), np.floor(means_of_four(noise) + 0.5))


def test_deflate_is_what_tifffile_reads_as_adobe_deflate_with_predictor() -> None:
    tile, file = smooth_picture(64, 64), BytesIO()
    payload = Codec("deflate").encode(tile)
    with tifffile.TiffWriter(file) as tiff:
        tiff.write(
            iter([payload]),
            shape=(64, 64, 3),
            dtype="uint8",
            tile=(64, 64),
            photometric="rgb",
            compression="adobe_deflate",
            predictor="horizontal",
        )
    file.seek(0)
    assert np.array_equal(tifffile.imread(file), tile)


@pytest.mark.parametrize(("subsampling", "sampling"), [("444", 0), ("422", 1), ("420", 2)])
def test_jpeg_as_pillow_reads_it(subsampling: Any, sampling: int) -> None:
    tile = smooth_picture(128, 128)
    payload = Codec("jpeg", 92, subsampling).encode(tile)
    with Image.open(BytesIO(payload)) as image:
        components = image.layer  # type: ignore[attr-defined]
        pillow = np.asarray(image)
    assert [component[1:3] for component in components] == [
        ((2, 2) if sampling == 2 else (2, 1) if sampling == 1 else (1, 1)),
        (1, 1),
        (1, 1),
    ]
    assert abs(pillow.astype(int) - tile).mean() < 2
    assert abs(Codec("jpeg", 92, subsampling).decode(payload, 128).astype(int) - pillow).max() <= 2


def test_higher_quality_is_nearer() -> None:
    tile = smooth_picture(128, 128)
    errors = [
        abs(c.decode(c.encode(tile), 128).astype(int) - tile).mean() for c in (Codec(quality=30), Codec(quality=95))
    ]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("codec", [Codec(), Codec(subsampling="444"), Codec("deflate")])
@pytest.mark.parametrize("side", [16, 400])
def test_half_scale_is_near_the_means(codec: Codec, side: int) -> None:
    tile = smooth_picture(side, side)
    half = codec.decode_half(codec.encode(tile), side)
    assert half.shape == (side // 2, side // 2, 3)
    assert half.dtype == np.uint8
    assert abs(half - means_of_four(tile)).mean() < 3


def test_halved_rounds_halves_up() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    assert np.array_equal(halved(noise), np.floor(means_of_four(noise) + 0.5))


def test_threads_give_the_same_bytes() -> None:
    codec, tiles = Codec(), [smooth_picture(64, 64 + 16 * n)[:64] for n in range(4)]
    payloads = [codec.encode(tile) for tile in tiles]
    halves = [codec.decode_half(payload, 64) for payload in payloads]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(codec.encode, tiles * 8)) == payloads * 8
        found = pool.map(lambda payload: codec.decode_half(payload, 64), payloads * 8)
        assert all(np.array_equal(half, want) for half, want in zip(found, halves * 8, strict=True))


@pytest.mark.parametrize("arguments", [("zstd",), ("jpeg", 0), ("jpeg", 101), ("jpeg", 85, "411")])
def test_settings_that_make_no_sense(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError):
        Codec(*arguments)
