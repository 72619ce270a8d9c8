"""Learning what a generator knows: which patches, which parts of the data, and into which file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from kin_cli.errors import InputError, UsageError
from kin_cli.models.checkpoint import load_generator
from kin_cli.models.reference import read_reference
from kin_cli.progress import SilentProgress
from kin_cli.trust.learn import LearnSettings, draw_places, learn_into
from tests.helpers.generators import write_generator
from tests.helpers.trusting import SIDE, learned, write_tissue


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator that has learned."""
    return learned(tmp_path_factory.mktemp("learned"))


def test_a_pytorch_generator_becomes_a_safetensors_file_of_the_same_weights(model: Path) -> None:
    before, after = load_generator(model.parent / "g.pth"), load_generator(model)
    for name, tensor in before.module.state_dict().items():
        assert torch.equal(tensor, after.module.state_dict()[name])
    reference = read_reference(model, after.channels)
    assert reference is not None
    assert (reference.card.patch_px, reference.card.patches) == (SIDE, 160)
    assert reference.card.images == ("train0.tif", "train1.tif")
    assert reference.card.mpp == pytest.approx(0.5)
    assert set(reference.card.stains) == {"macenko", "reinhard"}
    assert sorted(p.name for p in model.parent.iterdir()) == ["g.pth", "known.safetensors", "train0.tif", "train1.tif"]


def test_learning_again_gives_the_same_file(model: Path, tmp_path: Path) -> None:
    slides = [model.parent / "train0.tif", model.parent / "train1.tif"]
    learn_into(model, tmp_path / "again.safetensors", slides, LearnSettings(160, patch_px=SIDE), SilentProgress())
    assert (tmp_path / "again.safetensors").read_bytes() == model.read_bytes()


def test_parts_are_strips_of_few_slides_and_whole_slides_of_many(tmp_path: Path) -> None:
    slides = [write_tissue(tmp_path / f"{i}.tif", seed=i) for i in range(6)]
    few = draw_places(slides[:1], LearnSettings(100, patch_px=SIDE))
    edges = [[place.x for place in few if place.part == part] for part in range(5)]
    assert all(max(left) <= min(right) for left, right in pairwise(edges))
    many = draw_places(slides, LearnSettings(100, patch_px=SIDE))
    assert all(len({place.part for place in many if place.image == image}) == 1 for image in range(6))
    counts = np.bincount([place.image for place in many])
    assert counts.max() - counts.min() <= 4


def test_too_little_tissue_is_told(tmp_path: Path) -> None:
    slide = write_tissue(tmp_path / "small.tif", sides=(128, 192))
    model = write_generator(tmp_path / "g.pth")
    with pytest.raises(InputError, match="too few to learn from"):
        learn_into(model, tmp_path / "o.safetensors", [slide], LearnSettings(100, patch_px=SIDE), SilentProgress())
    assert not (tmp_path / "o.safetensors").exists()
    with pytest.raises(UsageError, match="too few"):
        LearnSettings(5)
