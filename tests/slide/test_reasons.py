"""Errors of libraries become one of a few kinds, each with its own way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from kin_cli.errors import InputError
from kin_cli.slide.open import open_slide
from kin_cli.slide.reasons import one_line, refusal, unread

SLIDE = Path("a.svs")


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (RuntimeError("Unsupported TIFF compression: 34925"), "cannot decode", "OME-TIFF"),
        (RuntimeError("Unsupported transfer syntax 1.2.840"), "cannot decode", "OME-TIFF"),
        (NotImplementedError("no"), "cannot decode", "OME-TIFF"),
        (RuntimeError("No pyramid levels found"), "not its picture", "largest level"),
        (RuntimeError("Couldn't open a/Index.dat: No such file or directory"), "is missing", "copy all"),
        (MemoryError(), "not enough memory", "tiles"),
        (RuntimeError("Corrupt JPEG data: premature end"), "not a readable", "copy it again"),
        (RuntimeError("Unsupported marker type 0x5c"), "not a readable", "copy it again"),
        (TypeError("'<' not supported between instances"), "contradict each other", "copy it again"),
    ],
)
def test_kinds_of_refusal(error: Exception, kind: str, hint: str) -> None:
    found = refusal(SLIDE, "aperio slide", error)
    assert found.message.startswith("a.svs: ")
    assert kind in found.message
    assert hint in (found.hint or "")


def test_parts_that_cannot_be_read() -> None:
    assert "level 1: broken" in unread(SLIDE, "level 1", RuntimeError("broken")).message
    assert "memory" in unread(SLIDE, "level 1", MemoryError()).message


def test_messages_are_one_line_without_repetitions() -> None:
    assert one_line(RuntimeError("bad table\nbad table\n  at   byte 5\n")) == "bad table at byte 5"
    assert len(one_line(RuntimeError("x" * 999))) == 300


@pytest.mark.parametrize("flavor", [b"LABEL ", b"OVERVI", b"LOCALI", b"THUMBN"])
def test_a_dicom_label_is_not_called_damaged(shared_data: Path, tmp_path: Path, flavor: bytes) -> None:
    content = (shared_data / "CMU-1-Small-Region-dicom" / "level4.dcm").read_bytes()
    assert b"\\VOLUME\\" in content
    path = tmp_path / "label.dcm"
    path.write_bytes(content.replace(b"\\VOLUME\\", b"\\" + flavor + b"\\", 1))
    with pytest.raises(InputError, match="not its picture") as caught:
        open_slide(path)
    assert "damaged" not in str(caught.value)
    assert "largest level" in (caught.value.hint or "")


def test_an_unsupported_transfer_syntax_is_not_called_damaged(shared_data: Path, tmp_path: Path) -> None:
    content = (shared_data / "CMU-1-Small-Region-dicom" / "level4.dcm").read_bytes()
    syntax = b"1.2.840.10008.1.2.4.50"
    assert syntax in content
    path = tmp_path / "odd.dcm"
    path.write_bytes(content.replace(syntax, b"1.2.840.10008.1.2.4.99", 1))
    with pytest.raises(InputError, match=r"cannot decode .*transfer syntax"):
        open_slide(path)
