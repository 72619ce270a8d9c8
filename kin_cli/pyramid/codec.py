"""Encoding and decoding of tiles, in the variants of JPEG and deflate that all common readers open correctly."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import imagecodecs
import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from kin_cli.errors import UsageError
from kin_cli.geometry import Pixels

_FACTORS = {"420": (2, 2), "422": (2, 1), "444": (1, 1)}
_DEFLATE_LEVEL = 1


@dataclass(frozen=True)
class Codec:
    """The encoding of tiles: JPEG (YCbCr, with quality 1 … 100 and chroma subsampling) or lossless deflate.

    Deflate is zlib at level 1 over horizontal differences (TIFF predictor 2); quality and subsampling then matter only
    when a flat JPEG is made from the tiles. The same pixels always give the same bytes. All methods are thread-safe and
    release the interpreter lock. Raises ``UsageError`` for invalid values.
    """

    compression: Literal["jpeg", "deflate"] = "jpeg"
    quality: int = 85
    subsampling: Literal["420", "422", "444"] = "420"

    def __post_init__(self) -> None:
        if self.compression not in ("jpeg", "deflate"):
            raise UsageError(f"unknown compression {self.compression!r}", "jpeg or deflate")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"a JPEG quality of {self.quality} is not in 1 … 100")
        if self.subsampling not in _FACTORS:
            raise UsageError(f"unknown chroma subsampling {self.subsampling!r}", "420, 422 or 444")

    @property
    def lossless(self) -> bool:
        """Whether decoding gives exactly the encoded pixels."""
        return self.compression == "deflate"

    @property
    def chroma_factors(self) -> tuple[int, int]:
        """Horizontal and vertical chroma subsampling factors, as in TIFF tag 530."""
        return _FACTORS[self.subsampling]

    def encode(self, tile: Pixels) -> bytes:
        """Encode a tile, uint8 (T, T, 3) RGB."""
        if self.lossless:
            differences = imagecodecs.delta_encode(tile, axis=-2)
            return bytes(imagecodecs.deflate_encode(differences.tobytes(), level=_DEFLATE_LEVEL))
        return bytes(
            imagecodecs.jpeg8_encode(
                np.ascontiguousarray(tile),
                level=self.quality,
                colorspace="RGB",
                outcolorspace="YCBCR",
                subsampling=self.subsampling,
            )
        )

    def decode(self, payload: bytes, side: int) -> Pixels:
        """Decode bytes from ``encode`` to the tile, uint8 (side, side, 3) RGB."""
        if self.lossless:
            raw = imagecodecs.deflate_decode(payload, out=side * side * 3)
            differences = np.frombuffer(raw, np.uint8).reshape(side, side, 3)
            return np.asarray(imagecodecs.delta_decode(differences, axis=-2))
        return np.asarray(imagecodecs.jpeg8_decode(payload))

    def decode_half(self, payload: bytes, side: int) -> Pixels:
        """Decode bytes from ``encode`` at half scale, uint8 (side / 2, side / 2, 3) RGB.

        Deflate: decoded, then ``halved``. JPEG: decoded from the low half of each DCT block's frequencies, which costs
        a third less than decoding and averaging and avoids the upward bias of rounding; 0.5 dB less exact at 4:2:0.
        """
        if self.lossless:
            return halved(self.decode(payload, side))
        # not Image.open, which registers plugins on first use and is then not thread-safe
        image = JpegImageFile(BytesIO(payload))
        image.draft("RGB", (side // 2, side // 2))
        return np.asarray(image)


def halved(pixels: Pixels) -> Pixels:
    """Means of 2×2 pixels, halves rounded up: uint8 (H, W, 3) with even sides to (H / 2, W / 2, 3)."""
    return np.asarray(Image.fromarray(pixels).reduce(2))
