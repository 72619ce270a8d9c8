"""Tiles to bytes and back, in the encodings that every reader of the output opens correctly."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from kin_cli.errors import UsageError

Pixels = NDArray[np.uint8]

_FACTORS = {"420": (2, 2), "422": (2, 1), "444": (1, 1)}
_DEFLATE_LEVEL = 1


@dataclass(frozen=True)
class Codec:
    """How tiles are encoded: JPEG (in YCbCr, with quality 1 … 100 and chroma subsampling), or lossless deflate.

    Deflate is zlib at level 1 over horizontal differences (TIFF predictor 2); quality and subsampling then only count
    where a flat JPEG is made of the tiles. The same pixels give the same bytes; all methods release the interpreter
    lock and may run in several threads. Raises ``UsageError`` for values that make no sense.
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
        """Whether decoding gives back the very pixels."""
        return self.compression == "deflate"

    @property
    def chroma_factors(self) -> tuple[int, int]:
        """Horizontal and vertical chroma subsampling, as the TIFF tag 530 has them."""
        return _FACTORS[self.subsampling]

    def encode(self, tile: Pixels) -> bytes:
        """Bytes of a tile, uint8 (T, T, 3) in RGB."""
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
        """The tile, uint8 (side, side, 3), of the bytes that ``encode`` gave."""
        if self.lossless:
            raw = imagecodecs.deflate_decode(payload, out=side * side * 3)
            differences = np.frombuffer(raw, np.uint8).reshape(side, side, 3)
            return np.asarray(imagecodecs.delta_decode(differences, axis=-2))
        return np.asarray(imagecodecs.jpeg8_decode(payload))

    def decode_half(self, payload: bytes, side: int) -> Pixels:
        """The tile at half its side, uint8 (side / 2, side / 2, 3).

        Deflate: ``halved``. JPEG: decoded from the low half of each block's frequencies, which costs a third less
        than decoding and averaging, without the upward bias of rounding; 0.5 dB less exact at 4:2:0.
        """
        if self.lossless:
            return halved(self.decode(payload, side))
        # the plugin's own class: Image.open registers plugins on first use, which is not safe in threads
        image = JpegImageFile(BytesIO(payload))
        image.draft("RGB", (side // 2, side // 2))
        return np.asarray(image)


def halved(pixels: Pixels) -> Pixels:
    """The means of 2×2 pixels, halves rounded up: uint8 (H, W, 3) with even sides to (H / 2, W / 2, 3)."""
    return np.asarray(Image.fromarray(pixels).reduce(2))
