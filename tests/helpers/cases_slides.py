"""Small files that other programs write and that are easily read as something else than they are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

STORED: dict[str, dict[str, Any]] = {
    "tiles": {"tile": (128, 128), "compression": "deflate", "metadata": None},
    "strips": {"rowsperstrip": 64, "compression": "deflate", "metadata": None},
}
_QPI = (
    '<?xml version="1.0" encoding="utf-16"?>\n<PerkinElmer-QPI-ImageDescription><ImageType>{}</ImageType>'
    "<Name>{}</Name></PerkinElmer-QPI-ImageDescription>"
)


def _plane(seed: int, shape: tuple[int, int] = (256, 320)) -> NDArray[np.uint8]:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 4)
    return ((smooth - smooth.min()) / (smooth.max() - smooth.min()) * 250).astype(np.uint8)


CHANNELS = [_plane(seed) for seed in range(5)]
PICTURE = np.stack(CHANNELS[:3], -1)


def write_pages(path: Path, planes: list[NDArray[Any]], *, stored: str, **options: Any) -> Path:
    """Planes in pages of their own, as fluorescence and stacks are stored."""
    with tifffile.TiffWriter(path) as writer:
        for plane in planes:
            writer.write(plane, **{"photometric": "minisblack", **STORED[stored], **options})
    return path


def write_qptiff(path: Path, *, stored: str = "tiles", brightfield: bool = False) -> Path:
    """A QPTIFF: five channels of fluorescence (or RGB), an RGB thumbnail, and a reduced level."""
    options: dict[str, Any] = {"software": "PerkinElmer-QPI", "resolution": (20000, 20000), "resolutionunit": 3}
    options |= STORED[stored]
    full = [PICTURE] if brightfield else CHANNELS
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for number, plane in enumerate(full):
            writer.write(plane, description=_QPI.format("FullResolution", f"ch{number}"), **options)
        writer.write(PICTURE[::4, ::4].copy(), description=_QPI.format("Thumbnail", ""), **options)
        for number, plane in enumerate(full):
            text = _QPI.format("ReducedResolution", f"ch{number}")
            writer.write(plane[::2, ::2].copy(), subfiletype=1, description=text, **options)
    return path


def write_ome_planes(path: Path, channels: dict[str, Any] | None, planes: NDArray[Any] | None = None) -> Path:
    """Three 8-bit planes in an OME-TIFF with the given attributes of its channels."""
    data = np.stack(CHANNELS[:3]) if planes is None else planes
    metadata = {"axes": "CYX", **({"Channel": channels} if channels else {})}
    options: dict[str, Any] = {"tile": (128, 128), "photometric": "minisblack", "compression": "deflate"}
    tifffile.imwrite(path, data, ome=True, metadata=metadata, **options)
    return path


def write_label_first(path: Path, *, ome: bool) -> Path:
    """A label, then the slide."""
    with tifffile.TiffWriter(path, ome=ome) as writer:
        names = [{"Name": "label"}, {"Name": "slide", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}]
        label, slide = names if ome else (None, None)
        writer.write(PICTURE[:64, :96].copy(), photometric="rgb", metadata=label)
        writer.write(PICTURE, photometric="rgb", tile=(128, 128), metadata=slide)
    return path


def write_masked_pyramid(path: Path, *, stored: str) -> Path:
    """A picture and its mask, each with a reduced level, as GDAL writes a cloud-optimized GeoTIFF."""
    options = STORED[stored]
    with tifffile.TiffWriter(path) as writer:
        writer.write(PICTURE, photometric="rgb", **options)
        writer.write(CHANNELS[4], photometric="minisblack", subfiletype=2, **options)
        writer.write(PICTURE[::2, ::2].copy(), photometric="rgb", subfiletype=1, **options)
        writer.write(CHANNELS[4][::2, ::2].copy(), photometric="minisblack", subfiletype=1, **options)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for page, kind in ((1, 4), (3, 5)):
            file.pages[page].tags[254].overwrite(kind)  # type: ignore[union-attr]
    return path


def write_huge_tile(path: Path) -> Path:
    """One tile that takes 12.9 GB when a reader trusts the tags."""
    options: dict[str, Any] = {"photometric": "rgb", "compression": "deflate", "metadata": None}
    tifffile.imwrite(path, np.zeros((512, 512, 3), np.uint8), tile=(512, 512), **options)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for tag in ("TileWidth", "TileLength"):
            file.pages[0].tags[tag].overwrite(65520)  # type: ignore[union-attr]
    return path


def write_larger_tile(path: Path) -> NDArray[np.uint8]:
    """A tile of 304×240 px that stores a JPEG of 320×256; the pixels that belong to the picture are returned."""
    stored = io.BytesIO()
    Image.fromarray(PICTURE).save(stored, "JPEG", quality=95, subsampling=0)
    tifffile.imwrite(
        path,
        iter([stored.getvalue()]),
        shape=(240, 304, 3),
        dtype=np.uint8,
        tile=(240, 304),
        photometric="ycbcr",
        subsampling=(1, 1),
        compression="jpeg",
        metadata=None,
    )
    return np.asarray(Image.open(stored))[:240, :304]


def write_density_0(path: Path) -> Path:
    """A JPEG whose JFIF header states a density of 0 × 0."""
    stored = io.BytesIO()
    Image.fromarray(PICTURE).save(stored, "JPEG", quality=90)
    content = bytearray(stored.getvalue())
    at = content.find(b"JFIF\0")
    content[at + 7 : at + 12] = b"\x01\0\0\0\0"
    path.write_bytes(content)
    return path
