"""The kinds of output, told by the name of the file."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from kin_cli.errors import UsageError


class OutputFormat(Enum):
    """A kind of output and the endings of names that ask for it."""

    OME_TIFF = (".ome.tif", ".ome.tiff")
    PLAIN_TIFF = (".tif", ".tiff")
    PNG = (".png",)
    JPEG = (".jpg", ".jpeg")

    @classmethod
    def of(cls, path: Path) -> OutputFormat:
        """The kind that a name asks for; ``UsageError`` if none."""
        name = path.name.lower()
        for kind in cls:  # the OME endings first: the plain ones are their ends
            if name.endswith(kind.value):
                return kind
        known = ", ".join(suffix for kind in cls for suffix in kind.value)
        raise UsageError(f"{path}: cannot tell the format from the name", f"end it in one of {known}")

    @property
    def pyramidal(self) -> bool:
        """Whether the file holds all levels (``write_pyramid``) or the image alone (``write_flat``)."""
        return self in (OutputFormat.OME_TIFF, OutputFormat.PLAIN_TIFF)
