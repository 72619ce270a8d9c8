"""Opening slides: real files against other readers, and files that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from kin_cli.errors import InputError, UsageError
from kin_cli.slide.open import open_slide


def test_pixel_size_can_be_overridden(shared_data: Path) -> None:
    path = shared_data / "CMU-1-Small-Region.svs"
    with open_slide(path, mpp=0.25) as slide:
        assert slide.mpp == 0.25
    for nonsense in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="positive number"):
            open_slide(path, mpp=nonsense)


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        open_slide(path)
    error = caught.value
    assert str(path) in error.message
    assert "\n" not in str(error)
    assert error.hint
    return error


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.svs").message


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.svs"
    path.touch()
    assert "is empty" in refused(path).message


def test_text_named_svs(tmp_path: Path) -> None:
    path = tmp_path / "text.svs"
    path.write_text("no slide at all\n" * 100)
    assert "known format" in refused(path).message


def test_folders(tmp_path: Path, shared_data: Path) -> None:
    assert "folder" in refused(tmp_path).message
    assert "level0.dcm" in (refused(shared_data / "CMU-1-Small-Region-dicom").hint or "")
    (tmp_path / "a").mkdir()
    (tmp_path / "a.mrxs").touch()
    assert "a.mrxs" in (refused(tmp_path / "a").hint or "")


@pytest.mark.parametrize(
    "name",
    [
        "CMU-1-Small-Region.svs",
        "CMU-1-Small-Region.pyramid.tif",
        "os_crops/OS-1-detail.ome.tif",
        "BS25_SYN_20x.tif",
    ],
)
def test_truncated_to_half(shared_data: Path, tmp_path: Path, name: str) -> None:
    content = (shared_data / name).read_bytes()
    path = tmp_path / Path(name).name
    path.write_bytes(content[: len(content) // 2])
    refused(path)
