"""A run continues on the very slides it was begun with: changed, exchanged, added or removed ones are refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kin_cli.errors import InputError, OutputError
from kin_cli.progress import SilentProgress
from kin_cli.training import inputs as module
from kin_cli.training.inputs import RunInputs
from kin_cli.training.run import train
from kin_cli.training.settings import HeldOut, PatchSettings
from kin_cli.training.state import read_state
from tests.helpers.processes import Run, assert_refused, kin
from tests.helpers.training_runs import Interrupting, Noting, command_line, draw_images, settings


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a run of two steps on them; nobody may write to it."""
    folder = draw_images(tmp_path_factory.mktemp("begun"))
    for file in folder.glob("*/*.png"):
        file.write_bytes(file.read_bytes() + b"\0")  # a byte that readers ignore, for ``same_size``
    assert kin(*command_line(folder, folder / "run", steps=2)).code == 0
    return folder


@pytest.fixture
def copied(begun: Path, tmp_path: Path) -> Path:
    """A copy elsewhere; its files have other inodes and times."""
    folder = tmp_path / "copied"
    shutil.copytree(begun, folder)
    for file in folder.glob("*/*.png"):
        os.utime(file, (1, 1))
    return folder


def resumed(folder: Path, *options: object) -> Run:
    return kin(*command_line(folder, folder / "run", *options, steps=4))


def same_size(path: Path) -> None:
    """Change a byte of a picture so that it can be read, and keeps its size and time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_a_copy_elsewhere_is_recognised_and_continues_bit_for_bit(begun: Path, copied: Path, tmp_path: Path) -> None:
    known = json.loads(read_state(copied / "run" / "state.pt")["inputs"])
    assert list(known["source"]) == ["0.png", "1.png"]
    wanted = hashlib.sha256((begun / "he" / "0.png").read_bytes()).hexdigest()
    assert known["source"]["0.png"]["sha256"] == wanted
    assert resumed(copied).code == 0
    whole = tmp_path / "whole"
    shutil.copytree(begun, whole)
    shutil.rmtree(whole / "run")
    assert kin(*command_line(whole, whole / "run", steps=2)).code == 0
    assert resumed(whole).code == 0
    names = ("generator.safetensors", "generator.pth", "samples/0000004.png")
    assert [(copied / "run" / n).read_bytes() for n in names] == [(whole / "run" / n).read_bytes() for n in names]


def test_a_folder_may_have_another_name(copied: Path) -> None:
    (copied / "he").rename(copied / "haematoxylin")
    done = kin(*command_line(copied, copied / "run", "--source", copied / "haematoxylin", steps=4))
    assert done.code == 0, done.err


@pytest.mark.parametrize("stain", ["he", "ihc"])
def test_a_changed_slide_is_refused_by_name(copied: Path, stain: str) -> None:
    same_size(copied / stain / "1.png")
    before = (copied / "run" / "state.pt").read_bytes()
    kind = {"he": "source", "ihc": "target"}[stain]
    assert_refused(resumed(copied), str(copied / stain / "1.png"), f"another {kind} file", code=1)
    assert (copied / "run" / "state.pt").read_bytes() == before
    assert resumed(copied, "--overwrite").code == 0


def test_exchanged_added_and_removed_slides_are_refused_by_name(copied: Path) -> None:
    first, second = copied / "he" / "0.png", copied / "he" / "1.png"
    first.rename(copied / "x.png")
    assert_refused(resumed(copied), "0.png is missing", code=1)
    second.rename(first)
    (copied / "x.png").rename(second)
    assert_refused(resumed(copied), str(first), "its bytes differ", code=1)
    second.rename(copied / "x.png")
    first.rename(second)
    (copied / "x.png").rename(first)
    shutil.copy(first, copied / "he" / "2.png")
    assert_refused(resumed(copied), "2.png was not there", code=1)
    (copied / "he" / "2.png").unlink()
    assert resumed(copied).code == 0


def test_another_start_or_slide_to_evaluate_is_refused(copied: Path, tmp_path: Path) -> None:
    start, held_out = tmp_path / "start.pth", tmp_path / "held.png"
    shutil.copy(copied / "run" / "generator.pth", start)
    pixels = np.random.default_rng(0).integers(60, 250, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).resize((160, 160)).save(held_out)
    held_out.write_bytes(held_out.read_bytes() + b"\0")
    run = copied / "tuned"
    options = ("--start", start, "--evaluation", held_out, "--patch-size", 64)
    assert kin(*command_line(copied, run, *options, steps=2)).code == 0
    shutil.copy(start, tmp_path / "renamed.pth")
    again = ("--start", tmp_path / "renamed.pth", *options[2:])
    assert kin(*command_line(copied, run, *again, steps=3)).code == 0
    weights = torch.load(start, weights_only=True)
    next(iter(weights.values())).mul_(1.01)
    torch.save(weights, start)
    assert_refused(kin(*command_line(copied, run, *options, steps=4)), str(start), "another start file", code=1)
    same_size(held_out)
    refused = kin(*command_line(copied, run, *again, steps=4))
    assert_refused(refused, str(held_out), "another evaluation file", code=1)
    # an evaluation may be left out
    assert kin(*command_line(copied, run, *again[:2], *again[4:], steps=4)).code == 0


def test_a_changed_stamp_is_refused_while_the_digest_is_unknown(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = settings(copied, tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(RunInputs, "begin", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            train(run, Interrupting(after=3))
    assert json.loads(read_state(run.output / "state.pt")["inputs"])["source"]["0.png"]["sha256"] is None
    os.utime(copied / "he" / "0.png", (5, 5))
    with pytest.raises(OutputError, match=r"0\.png was changed, copied or moved before its checksum was known"):
        train(run, SilentProgress())


def test_digests_of_many_bytes_are_taken_beside_the_work_and_saved_at_the_end(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE_BYTES", 10)
    told = Noting()
    run = settings(copied, tmp_path / "run")
    train(run, told)
    found = json.loads(read_state(run.output / "state.pt")["inputs"])
    assert all(entry["sha256"] for kind in ("source", "target") for entry in found[kind].values())
    with RunInputs({"source": sorted((copied / "he").glob("*.png"))}) as many:
        many.begin(SilentProgress())
    with RunInputs({"source": sorted((copied / "he").glob("*.png"))}) as many:
        many.begin(SilentProgress())
        many.finish(SilentProgress())
        assert many.as_dict()["source"] == found["source"]


@pytest.mark.parametrize(("at", "kept"), [("step 2", 2), ("step 4", 4)])
def test_a_slide_that_changes_while_it_is_learnt_from_fails_the_run(
    copied: Path, tmp_path: Path, at: str, kept: int
) -> None:
    class Changing(Noting):
        def note(self, message: str) -> None:
            if message.startswith(at):
                same_size(copied / "he" / "0.png")

    patches = PatchSettings(copied / "he", copied / "ihc", patch_px=64)
    run = settings(copied, tmp_path / "run", evaluation=HeldOut(every=2), patches=patches)
    with pytest.raises(InputError, match=r"0\.png: was changed during the training"):
        train(run, Changing())
    assert read_state(run.output / "state.pt")["step"] == kept
    assert not (run.output / "samples" / f"000000{kept + 2}.png").exists()
