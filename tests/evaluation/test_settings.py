"""Which metrics are computed, which are left out, and why: against the list of what each of them needs."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from kin_cli.errors import UsageError
from kin_cli.evaluation.settings import METRICS, EvaluationSettings, Sampling, SlideChoice

NEEDS = {
    "fid": [{"reference", "inception"}],
    "kid": [{"reference", "inception"}, {"reference", "features"}],
    "histogram": [{"reference"}],
    "sobel": [set()],
    "piqe": [set()],
    "niqe": [{"reference"}, {"niqe_model"}],
    "ssim": [{"source"}],
    "fsim": [{"source"}],
    "seams": [set()],
}
VALUES = {
    "reference": SlideChoice(Path("r.svs")),
    "source": SlideChoice(Path("s.svs")),
    "inception": Path("i.pth"),
    "features": "efficientnet-lite0",
    "niqe_model": Path("n.mat"),
}


@pytest.mark.parametrize("given", list(product([False, True], repeat=len(VALUES))))
def test_what_can_be_computed_is_and_the_rest_is_explained(given: tuple[bool, ...]) -> None:
    there = {name for name, is_given in zip(VALUES, given, strict=True) if is_given}
    choice = EvaluationSettings(SlideChoice(Path("a.svs")), **{name: VALUES[name] for name in there})  # type: ignore[arg-type]
    computed, left_out = choice.chosen()
    assert list(computed) == [name for name in METRICS if any(need <= there for need in NEEDS[name])]
    assert set(computed) | left_out.keys() == set(METRICS)
    for why in left_out.values():
        assert "--" in why, "it names the option"


def test_what_was_asked_for_is_computed_or_refused() -> None:
    slide = SlideChoice(Path("a.svs"))
    assert EvaluationSettings(slide, metrics=("piqe", "sobel")).chosen() == (("sobel", "piqe"), {})
    with pytest.raises(UsageError, match="ssim cannot be computed: it needs"):
        EvaluationSettings(slide, metrics=("ssim",)).chosen()
    with pytest.raises(UsageError, match="no metric 'psnr'"):
        EvaluationSettings(slide, metrics=("psnr",)).chosen()


def test_seams_are_measured_at_the_slides_own_resolution_only() -> None:
    resampled = EvaluationSettings(SlideChoice(Path("a.svs"), mpp=0.5))
    assert "seams" not in resampled.chosen()[0]
    assert "--mpp" in (resampled.missing("seams") or "")


@pytest.mark.parametrize("side", [0, 100, 520])
def test_tiles_that_metrics_cannot_cut(side: int) -> None:
    with pytest.raises(UsageError, match="multiple of 16"):
        Sampling(tile_px=side)
