"""``evaluate`` on small pictures: the tiles, the figures as each metric alone gives them, and refusals."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from kin_cli.errors import InputError, UsageError
from kin_cli.evaluation.run import Evaluation, evaluate
from kin_cli.evaluation.settings import METRICS, EvaluationSettings, Sampling, SeamChoice, SlideChoice
from kin_cli.evaluation.tiles import Panel, opened, sampled_boxes
from kin_cli.geometry import Box, Size
from kin_cli.metrics.colour import Pixels
from kin_cli.metrics.fid import InceptionV3
from kin_cli.metrics.fsim import fsim
from kin_cli.metrics.histogram import HueHistogram, LabHistogram, correlations
from kin_cli.metrics.piqe import Piqe, PiqeOfAuthors
from kin_cli.metrics.sobel import SobelGradient
from kin_cli.metrics.ssim import Ssim
from kin_cli.progress import SilentProgress
from kin_cli.slide.mask_file import tissue_mask
from kin_cli.slide.tissue import TissueMask

SIDE = 768


def texture(seed: int, colour: tuple[int, int, int]) -> Pixels:
    """Spots of several sizes in one colour on white: 768×768 px."""
    draws = np.random.default_rng(seed)
    spots = sum(ndimage.gaussian_filter(draws.normal(size=(SIDE, SIDE)), sigma) * sigma for sigma in (1, 3, 9))
    fraction = np.clip(0.5 + spots, 0, 1)[..., None]
    return np.rint(255 - fraction * (255 - np.array(colour))).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A source, its translation with four patches' worth of seams, and a reference, as PNG (all of it counts)."""
    folder = tmp_path_factory.mktemp("pictures")
    source = texture(1, (150, 40, 130))
    translated = source[..., [1, 0, 2]].copy()
    translated[:256, 256:512] = np.clip(translated[:256, 256:512].astype(int) + 12, 0, 255)
    for name, pixels in (("source", source), ("slide", translated), ("reference", texture(2, (110, 60, 20)))):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in ("source", "slide", "reference")}


def pixels_of(path: Path) -> Pixels:
    return np.array(Image.open(path))


def settings(pictures: dict[str, Path], *names: str, **others: object) -> EvaluationSettings:
    options = {
        "reference": SlideChoice(pictures["reference"]),
        "source": SlideChoice(pictures["source"]),
        "sampling": Sampling(tile_px=256),
        "seams": SeamChoice(128),
        "metrics": names or None,
        **others,
    }
    return EvaluationSettings(SlideChoice(pictures["slide"]), **options)


def figures(found: Evaluation) -> dict[str, float | None]:
    return {figure.metric: figure.value for figure in found.figures}


def alone(metric: Piqe | SobelGradient, pixels: Pixels) -> dict[str, float]:
    """A metric fed with the whole picture at once, mirrored around it as a view does."""
    margin = metric.halo_px
    metric.add(metric.measure(np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), "reflect")))
    return metric.figures()


def test_tiles_give_what_the_whole_picture_gives(pictures: dict[str, Path]) -> None:
    slide, source, reference = (pixels_of(pictures[name]) for name in ("slide", "source", "reference"))
    found = figures(
        evaluate(settings(pictures, "sobel", "piqe", "ssim", "fsim", "histogram", authors=True), SilentProgress())
    )
    assert found["sobel_y"] == pytest.approx(alone(SobelGradient(), slide)["sobel_y"])
    assert found["piqe"] == pytest.approx(alone(Piqe(), slide)["piqe"])
    assert found["piqe_authors"] == pytest.approx(alone(PiqeOfAuthors(), slide)["piqe_authors"], rel=1e-5)
    assert found["fsim_whole"] == pytest.approx(fsim(slide, source))
    ssim = Ssim()
    framed = [np.pad(image, ((5, 5), (5, 5), (0, 0)), "reflect") for image in (slide, source)]
    ssim.add(ssim.measure(*framed))
    assert found["ssim"] == pytest.approx(ssim.figures()["ssim"])
    for kind, name in ((LabHistogram, "histogram"), (HueHistogram, "histogram_authors")):
        pair = kind(), kind()
        for histogram, image in zip(pair, (slide, reference), strict=True):
            histogram.add(histogram.measure(image))
        assert found[name] == pytest.approx(correlations(*pair).mean())


def test_seams_are_found_and_read_against_the_source(pictures: dict[str, Path]) -> None:
    found = evaluate(settings(pictures, "seams"), SilentProgress())
    assert found.seams is not None
    report = found.seams.report
    assert report.figure().n == 2 * 6 * 5
    places = {(line.x, line.y) for line in report.worst(count=8)}
    assert places == {(256, 0), (256, 128), (512, 0), (512, 128), (256, 256), (384, 256)} | places
    assert figures(found)["seams R*"] == report.figure().ratio_to_source > 1.02
    assert found.tiles == {}


def test_everything_at_once_is_ready_for_json(pictures: dict[str, Path], tmp_path: Path) -> None:
    weights, model = tmp_path / "inception.pth", tmp_path / "niqe.npz"
    with torch.device("meta"):
        state = InceptionV3().state_dict()
    # a network of zeros: every feature is 0, and so is the distance
    torch.save({name: torch.full(value.shape, float("var" in name)) for name, value in state.items()}, weights)
    np.savez(model, mean=np.ones(36), covariance=np.eye(36))
    wanted = settings(pictures, inception=weights, niqe_model=model, sampling=Sampling(2, 5, 256), device="cpu")
    found = evaluate(wanted, SilentProgress())
    record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert record["left_out"] == {}
    assert record["tiles"] == {"reference": 2, "slide": 2}
    values = {figure["metric"]: figure["value"] for figure in record["figures"]}
    assert set(values) == {
        *("fid", "histogram", "sobel_y", "sobel_cb", "sobel_cr", "piqe", "niqe", "ssim", "fsim", "fsim_whole"),
        *("seams R*", "seams excess"),
    }
    assert all(math.isfinite(value) for value in values.values())
    fid = next(figure for figure in found.figures if figure.metric == "fid")
    assert fid.value == pytest.approx(0)
    assert "2 and 2 tiles" in fid.detail
    assert "too few" in fid.detail
    assert "not the public weights" in fid.detail


def test_what_is_left_out_is_said_and_what_was_asked_for_is_refused(pictures: dict[str, Path]) -> None:
    bare = settings(pictures, reference=None, source=None)
    names, left_out = bare.chosen()
    assert names == ("sobel", "piqe", "seams")
    assert set(left_out) == set(METRICS) - set(names)
    for metric, needed in (("fid", "--reference"), ("niqe", "--niqe-model"), ("ssim", "--source"), ("psnr", "fid, hi")):
        with pytest.raises(UsageError, match=metric) as raised:
            evaluate(replace(bare, metrics=("sobel", metric)), SilentProgress())
        assert needed in str(raised.value)
    with pytest.raises(UsageError, match="pt_inception"):
        evaluate(settings(pictures, "fid"), SilentProgress())
    scaled = SlideChoice(pictures["slide"], mpp=1.0)
    assert "seams" in replace(bare, slide=scaled).chosen()[1]


def test_too_little_to_fit_niqe_to_is_a_reason_not_a_number(pictures: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="72 are needed"):
        evaluate(settings(pictures, "niqe"), SilentProgress())
    found = evaluate(settings(pictures, source=None), SilentProgress())
    niqe = next(figure for figure in found.figures if figure.metric == "niqe")
    assert niqe.value is None
    assert "72 are needed" in niqe.detail


def test_a_source_of_another_size_is_refused_and_a_part_of_it_can_be_named(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    part = tmp_path / "part.png"
    Image.fromarray(pixels_of(pictures["source"])[128:640, 256:768]).save(part)
    of_part = replace(settings(pictures, "ssim"), slide=SlideChoice(part))
    with pytest.raises(InputError, match=r"768×768 pixels, but .*part\.png has 512×512"):
        evaluate(of_part, SilentProgress())
    region = SlideChoice(pictures["source"], region=Box(256, 128, 512, 512))
    assert figures(evaluate(replace(of_part, source=region), SilentProgress())) == {"ssim": pytest.approx(1)}


def test_sampling_is_drawn_from_tissue_and_repeatable(pictures: dict[str, Path]) -> None:
    tissue = np.zeros((6, 6), np.bool_)
    tissue[1:5, 2:6] = True
    with opened(SlideChoice(pictures["slide"])) as view:
        mask = TissueMask(tissue, Size(SIDE, SIDE))
        every = sampled_boxes(view, mask, Sampling(tile_px=128))
        assert every == [Box(128 * col, 128 * row, 128, 128) for row in range(1, 5) for col in range(2, 6)]
        drawn = sampled_boxes(view, mask, Sampling(5, 1, 128))
        assert drawn == sampled_boxes(view, mask, Sampling(5, 1, 128))
        assert drawn != sampled_boxes(view, mask, Sampling(5, 2, 128))
        assert len(drawn) == len(set(drawn)) == 5
        assert set(drawn) < set(every)
        # cells that reach beyond the picture are no tiles: 768 is not a multiple of 160
        inside = sampled_boxes(view, tissue_mask(view, "none"), Sampling(tile_px=160))
        assert len(inside) == 16
        with pytest.raises(InputError, match="half tissue"):
            sampled_boxes(view, TissueMask(~tissue & False, Size(SIDE, SIDE)), Sampling())


@pytest.mark.parametrize("side", [0, 100, 520])
def test_tiles_that_metrics_cannot_cut(side: int) -> None:
    with pytest.raises(UsageError, match="multiple of 16"):
        Sampling(tile_px=side)


class Recorder:
    """A metric that notes what it is shown, and by which thread."""

    def __init__(self, halo_px: int) -> None:
        self.halo_px = halo_px
        self.added: list[tuple[int, ...]] = []
        self.threads: set[int] = set()

    def measure(self, *tiles: Pixels) -> tuple[int, ...]:
        return tuple(int(tile[0, 0, 0]) for tile in tiles) + tiles[0].shape[:2]

    def add(self, part: tuple[int, ...]) -> None:
        self.threads.add(threading.get_ident())
        self.added.append(part)


def test_a_panel_reads_each_tile_once_and_cuts_every_metrics_halo() -> None:
    reads: list[Box] = []

    def read(box: Box) -> Pixels:
        reads.append(box)
        cols = np.arange(box.x, box.right)[None, :, None] % 256
        return np.broadcast_to(cols, (box.height, box.width, 3)).astype(np.uint8)

    plain, wide, pair = Recorder(0), Recorder(16), Recorder(5)
    boxes = [Box(32 * number, 0, 32, 32) for number in range(7)]
    Panel([plain, wide], [pair]).run(
        boxes, read, source=lambda box: 255 - read(box), stage="tiles", progress=SilentProgress(), workers=3
    )
    assert sorted(reads, key=lambda box: box.x) == [box.grown(16) for box in boxes for _ in range(2)]
    assert plain.added == [(32 * number, 32, 32) for number in range(7)]
    assert wide.added == [((32 * number - 16) % 256, 64, 64) for number in range(7)]
    assert pair.added == [((32 * n - 5) % 256, 255 - (32 * n - 5) % 256, 42, 42) for n in range(7)]
    assert plain.threads == {threading.get_ident()}
