"""What a finished file knows of how it was made: ``provenance``.

A TIFF tells it in its own metadata. A PNG or JPEG has none; there it is the record beside the file, if that is the
record of these very bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kin_cli.geometry import Box
from kin_cli.pyramid.check import Record, record_beside
from kin_cli.pyramid.ifd import MalformedTiffError, Tag, TiffDirectories
from kin_cli.pyramid.metadata import parse_description, settings_as_text
from kin_cli.store.files import file_sha256, head_of, open_regular

_FLAT = (b"\x89PNG", b"\xff\xd8\xff")
_NAMES = {"slide", "output"}  # settings that are names of files


@dataclass(frozen=True)
class Provenance:
    """How a finished file was made, as it tells.

    Attributes:
        file: the finished file.
        software: name and version of the program that made it, such as "kin 0.1.0".
        settings: what decided its bytes, by name; a value that is no text is its JSON, such as ``[0, 0, 512, 512]``.
        record: the record beside the file; None if there is none, or one of another file.
    """

    file: Path
    software: str
    settings: Mapping[str, str]
    record: Record | None

    @property
    def slide(self) -> str:
        """Name of the slide's file."""
        return self.settings.get("slide", "")

    @property
    def patch_px(self) -> int | None:
        """Side of the patches, px."""
        return _whole(self.value("patch size"))

    @property
    def level(self) -> int | None:
        """Pyramid level of the slide that was translated; None if the slide was resampled, or if it is not told."""
        return None if self.mpp is not None else _whole(self.value("level"))

    @property
    def mpp(self) -> float | None:
        """µm per pixel that the slide was resampled to (``--mpp``); None if it was not."""
        return _positive(self.value("mpp")) if self.value("resampled") is True else None

    @property
    def source_mpp(self) -> float | None:
        """µm per level-0 pixel that the user stated of the slide (``--source-mpp``); None if the slide's own."""
        return _positive(self.value("source mpp"))

    @property
    def series(self) -> int | None:
        """Number of the picture within a TIFF that was chosen (``--series``); None if none was."""
        return _whole(self.value("series"))

    @property
    def region(self) -> Box | None:
        """The rectangle that was translated, in pixels of the level or resolution; None: all of it."""
        sides = self.value("region")
        if not isinstance(sides, list) or len(sides) != len(("x", "y", "width", "height")):
            return None
        x, y, width, height = (_whole(side) for side in sides)
        if x is None or y is None or not width or not height:
            return None
        return Box(x, y, width, height)

    @property
    def part(self) -> str:
        """The part of the slide that was translated, in words."""
        where = f"level {self.level}" if self.mpp is None else f"resampled to {self.mpp:g} µm/px"
        box = self.region
        return where if box is None else f"{where}, region {box.x},{box.y},{box.width},{box.height}"

    def value(self, name: str) -> Any:
        """The value of a setting: of JSON what it says, otherwise its text; None if the file does not tell it."""
        text = self.settings.get(name)
        try:
            return None if text is None else json.loads(text)
        except (ValueError, RecursionError):
            return text

    def is_from(self, slide: Path) -> bool:
        """Whether a slide may be the one that the file was made from: a file of as many bytes."""
        try:
            return bool(self.value("slide bytes") == slide.stat().st_size)
        except OSError:
            return False


def provenance(file: Path) -> Provenance | None:
    """How a file was made; None if kin did not make it, or it is a PNG or JPEG without its record.

    Reads the head of a TIFF, and all of a PNG or JPEG that has a record.
    """
    try:
        head, record = head_of(file, 4), record_beside(file)
        if head.startswith(_FLAT):
            if record is None or file_sha256(file) != record.get("output_sha256"):
                return None
            return Provenance(file, f"kin {record['kin']}", settings_as_text(record["settings"]), record)
        with open_regular(file) as stream:
            tiff = TiffDirectories(stream.fileno())
            found = parse_description(tiff.text(tiff.chain()[0], Tag.DESCRIPTION))
    except (OSError, MalformedTiffError, IndexError, KeyError, AttributeError, TypeError):
        return None
    if found is None:
        return None
    ours = record is not None and _tells(record, file, found.settings)
    return Provenance(file, found.software, found.settings, record if ours else None)


def _tells(record: Record, file: Path, settings: Mapping[str, str]) -> bool:
    """Whether a record is of a file of this size with these settings; in XML not every file name stands as it is."""
    try:
        same = {name: text == settings.get(name) for name, text in settings_as_text(record["settings"]).items()}
        return record["output_bytes"] == file.stat().st_size and all(same[name] for name in same.keys() - _NAMES)
    except (OSError, KeyError, AttributeError):
        return False


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _positive(value: object) -> float | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and 0 < value < float("inf") else None  # type: ignore[arg-type,operator]
