"""Generators by name: the bundled one, those in folders, their cards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from kin_cli.errors import ModelError
from kin_cli.models.architectures import build
from kin_cli.models.checkpoint import bundled_model, save_generator
from kin_cli.models.named import card, find_generator, shelf
from tests.helpers.generators import TINY, write_generator
from tests.helpers.processes import kin, succeed


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders of KIN_MODELS, the second of which is missing."""
    shelves = tmp_path / "shelf"
    shelves.mkdir()
    metadata = {"source_stain": "H&E", "target_stain": "PAS", "mpp": "0.25", "licence": "CC0", "data": "ours"}
    save_generator(build(TINY), shelves / "he2masson.safetensors", spec=TINY, metadata=metadata)
    write_generator(shelves / "plain.pth")
    write_generator(shelves / "he2masson.pth", seed=1)
    (shelves / "notes.txt").write_text("no generator")
    monkeypatch.setenv("KIN_MODELS", f"{shelves}:{tmp_path / 'absent'}")
    monkeypatch.chdir(tmp_path)
    return shelves


def test_names_are_those_of_the_files(folder: Path) -> None:
    known, unread = shelf()
    assert known["he2pas"] == bundled_model()
    assert {name: path.name for name, path in known.items() if path.parent == folder} == {
        "he2masson": "he2masson.pth",
        "he2masson.safetensors": "he2masson.safetensors",
        "plain": "plain.pth",
    }
    assert unread == [f"KIN_MODELS: {folder.parent / 'absent'}: No such file or directory"]


def test_a_file_that_is_there_comes_before_a_name(folder: Path) -> None:
    assert find_generator(Path("plain")) == folder / "plain.pth"
    assert find_generator(Path("plain.pth")) == folder / "plain.pth"
    assert find_generator(Path("absent.pth")) == Path("absent.pth")
    assert find_generator(Path("some/plain")) == Path("some/plain")
    Path("plain").write_bytes(b"")
    assert find_generator(Path("plain")) == Path("plain")
    with pytest.raises(ModelError, match="kin models lists them: he2masson"):
        find_generator(Path("plane"))


def test_the_list_shows_cards(folder: Path) -> None:
    listed = json.loads(succeed("models", "--json"))["models"]
    (one,) = [entry for entry in listed if entry["name"] == "he2masson.safetensors"]
    assert (one["source_stain"], one["target_stain"], one["mpp"], one["licence"]) == ("H&E", "PAS", "0.25", "CC0")
    assert one["sha256"] == hashlib.sha256((folder / "he2masson.safetensors").read_bytes()).hexdigest()
    shown = kin("models")
    assert shown.code == 0
    assert "H&E → PAS" in shown.out
    assert "none: only .safetensors files have one" in shown.out
    assert "absent: No such file" in shown.err


def test_a_name_stands_for_its_file_everywhere(folder: Path, slide: Path) -> None:
    plan = json.loads(succeed("translate", slide, "-m", "plain", "-o", "o.tif", "--dry-run", "--json"))
    assert plan["patches"] > 0
    assert json.loads(succeed("info", "plain", "--json"))["architecture"] == "resnet-cyclegan"
    refused = kin("translate", slide, "-m", "plane", "-o", "o.tif")
    assert (refused.code, "kin models" in refused.err) == (1, True)


@pytest.mark.parametrize("content", [b"", b"\x00" * 20, b"\xff" * 8 + b"{", b'\x05\0\0\0\0\0\0\0{"a"', b"\x80\x02}"])
def test_files_without_a_card_have_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    assert card(tmp_path / "x.safetensors") == {}
