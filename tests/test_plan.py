"""What a translation will do, known before any work: numbers by hand, choices by their definition."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from kin_cli.errors import NoTissueError, OutputError, UsageError
from kin_cli.geometry import Box
from kin_cli.models.checkpoint import Generator, load_generator
from kin_cli.passes.budget import activation_bytes, auto_batch, auto_window
from kin_cli.plan import make_plan
from tests.helpers.pictures import random_pixels
from tests.helpers.translations import PATCH, settings


@pytest.fixture(scope="module")
def generator(tiny_generator: Path) -> Generator:
    return load_generator(tiny_generator)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300×200 px: 4 × 5 patches of 64 px."""
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(random_pixels(200, 300)).save(file)
    return file


def test_batches_fit_the_device(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    need = activation_bytes(generator, 512, "bf16") * 3 // 4
    cuda = torch.device("cuda")
    for total, expected in ((80 << 30, 8), (round(3.2 * need / 0.35), 3), (need // 10, 1)):
        found = SimpleNamespace(total_memory=total)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, found=found: found)
        assert auto_batch(generator, 512, device=cuda, precision="bf16") == expected
    assert auto_batch(generator, 512, device=torch.device("cpu"), precision="fp32") == 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("width", [4, 64, 512])
def test_windows_double_while_there_is_a_halo_and_memory(generator: Generator, device: str, width: int) -> None:
    wide = dataclasses.replace(generator, width=width)
    window = auto_window(wide, patch_px=64, halo_px=32, device=device, precision="fp32")
    most, memory = {"cpu": (1024, 3 << 30), "cuda": (2048, 6 << 30)}[device]
    # three maps of full resolution, and a fourth for the allocator, four bytes a number
    fits = [side for side in (128, 256, 512, 1024, 2048) if 16 * width * (side + 64) ** 2 <= memory and side <= most]
    assert window == max([64, *fits])
    assert auto_window(wide, patch_px=64, halo_px=0, device=device, precision="fp32") == 64


def test_the_summary_counts_by_hand(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    tissue = np.zeros((200, 300), np.uint8)
    tissue[:64, :130] = 255  # two patches, and a sliver of a third
    Image.fromarray(tissue).save(tmp_path / "mask.png")
    plan = make_plan(settings(photo, tiny_generator, tmp_path / "o.tif", tissue=tmp_path / "mask.png"))
    with plan.view.slide:
        summary = plan.summary()
        channels = sum(
            layer.num_features for layer in plan.generator.module.modules() if hasattr(layer, "num_features")
        )
        np.testing.assert_allclose(plan.weights[0], [1, 1, 2 / 64, 0, 0], atol=1e-6)
    assert (summary["size"], summary["grid"], summary["patches"]) == ([300, 200], [4, 5], 20)
    assert (summary["patches_with_tissue"], summary["patches_measured"]) == (3, 3)
    assert summary["table_bytes"] == 3 * 2 * 4 * channels
    assert summary["disk_bytes"] == 2 * 3 * 300 * 200 + 3 * 512**2 + summary["table_bytes"]  # one partial tile


def test_all_that_changes_pixels_is_in_the_fingerprint_and_nothing_else(
    photo: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    def fingerprint(**changes: object) -> dict[str, object]:
        plan = make_plan(settings(photo, tiny_generator, tmp_path / "o.tif", **changes))
        with plan.view.slide:
            return plan.fingerprint()

    plain = fingerprint()
    for changes, key in (
        ({"kernel": "constant:5"}, "kernel"),
        ({"patch_px": 128}, "patch size"),
        ({"halo_px": 8}, "halo"),
        ({"interpolation": "bilinear"}, "interpolation"),
        ({"correction": 1}, "correction"),
        ({"eps": 0.0}, "eps"),
        ({"quality": 91}, "quality"),
        ({"background": "keep"}, "background"),
        ({"precision": "bf16"}, "precision"),
        ({"source_mpp": 0.3}, "mpp"),
    ):
        other = fingerprint(**changes)
        assert key in {name for name in plain if plain[name] != other[name]}, changes
    for changes in ({"workers": 1}, {"batch_size": 3}, {"overwrite": True}, {"report": True}):
        assert fingerprint(**changes) == plain


def test_the_prior_counts_only_among_tissue_and_under_a_kernel(
    photo: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    Image.fromarray(np.full((200, 300), 255, np.uint8)).save(tmp_path / "mask.png")
    for changes, counts in (
        ({"tissue": tmp_path / "mask.png"}, True),
        ({"tissue": tmp_path / "mask.png", "kernel": "1"}, False),
        ({"tissue": "none"}, False),
        ({"tissue": "auto"}, False),  # a photograph is all tissue
    ):
        plan = make_plan(settings(photo, tiny_generator, tmp_path / "o.tif", **changes))
        with plan.view.slide:
            assert (plan.prior > 0) == counts, changes


def test_outputs_that_cannot_be_written_are_refused_before_anything_is_opened(photo: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.pth"
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "there.tif").touch()
    for output, error, match in (
        (tmp_path / "nowhere" / "o.tif", OutputError, "no such folder"),
        (tmp_path / "folder.tif", OutputError, "is a folder"),
        (tmp_path / "there.tif", OutputError, "exists already"),
    ):
        with pytest.raises(error, match=match):
            make_plan(settings(photo, absent, output))
    with pytest.raises(UsageError, match="is a file of the slide, which is never replaced"):
        make_plan(settings(photo, absent, photo, overwrite=True))


def test_sides_that_the_network_cannot_halve_are_refused(photo: Path, tmp_path: Path) -> None:
    from kin_cli.models.unet import UnetSpec
    from tests.helpers.generators import write_generator

    unet = write_generator(tmp_path / "unet.pth", UnetSpec(width=2, downs=7))
    with pytest.raises(UsageError, match=f"patch size {PATCH} is not a multiple of 128"):
        make_plan(settings(photo, unet, tmp_path / "o.tif"))


@pytest.mark.parametrize(
    ("mask", "region", "words"),
    [
        (np.zeros((200, 300)), None, r"the mask .*mask\.png selects nothing of it \(--tissue none"),
        (np.eye(1, 60000)[0].reshape(200, 300), Box(100, 100, 64, 64), r"photo\.png: the region: the mask"),
    ],
)
def test_a_mask_that_selects_nothing_is_told(
    photo: Path, tiny_generator: Path, tmp_path: Path, mask: np.ndarray, region: Box | None, words: str
) -> None:
    Image.fromarray((255 * mask).astype(np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(NoTissueError, match=words):
        make_plan(settings(photo, tiny_generator, tmp_path / "o.tif", tissue=tmp_path / "mask.png", region=region))


def test_what_loading_changed_is_told_before_the_work(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    model = tmp_path / "half.pth"
    state = torch.load(tiny_generator, weights_only=True)
    torch.save({name: value.half() for name, value in state.items()}, model)
    plan = make_plan(settings(photo, model, tmp_path / "o.tif", source_mpp=0.5))
    with plan.view.slide:
        borders = plan.border_warning()
        assert plan.warnings() == [borders]
        assert plan.notes() == [borders, f"{model}: converted weights from float16 to float32"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": "in"}, ["--method in", "--method kin"]),
        ({"halo_px": 0}, ["--halo 0", "--paper"]),
        ({"halo_px": 8, "interpolation": "bilinear"}, ["--halo 8"]),
        ({"halo_px": None, "interpolation": "nearest"}, ["--interpolation nearest", "--seamless"]),
        ({"halo_px": None, "interpolation": "bilinear"}, None),
        ({"halo_px": None, "interpolation": "nearest", "kernel": "global"}, None),
        ({"patch_px": 512}, None),
    ],
)
def test_settings_that_leave_borders_name_the_flag_that_removes_them(
    photo: Path, tiny_generator: Path, tmp_path: Path, changes: dict[str, object], named: list[str] | None
) -> None:
    if changes.get("method") == "in":
        changes = {"kernel": None, **changes}
    plan = make_plan(settings(photo, tiny_generator, tmp_path / "o.tif", **changes))
    with plan.view.slide:
        told = plan.border_warning()
        assert (told is None) == (named is None)
        assert all(flag in (told or "") for flag in named or [])


@pytest.mark.parametrize("grey", [0, 90, 255])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_photograph_of_a_single_colour_has_no_tissue(
    tiny_generator: Path, tmp_path: Path, grey: int, ending: str
) -> None:
    plain = tmp_path / f"plain.{ending}"
    Image.fromarray(np.full((200, 300, 3), grey, np.uint8)).save(plain)
    with pytest.raises(NoTissueError, match=r"shows a single colour \(--tissue none"):
        make_plan(settings(plain, tiny_generator, tmp_path / "o.tif", tissue="auto"))
    plan = make_plan(settings(plain, tiny_generator, tmp_path / "o.tif", tissue="none"))
    with plan.view.slide:
        assert plan.translated_patches == 20


def test_the_memory_of_a_job_is_kept_to_where_threads_decide_and_told_where_not(
    photo: Path, tiny_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = settings(photo, tiny_generator, tmp_path / "o.tif")
    monkeypatch.setattr("kin_cli.plan.available_cores", lambda: 8)
    free = make_plan(wanted)
    assert free.workers == 8
    one = dataclasses.replace(free, workers=1).host_bytes
    for limit, workers in ((free.host_bytes, 8), (free.host_bytes - 1, 4), (one, 1), (one - 1, 1)):
        monkeypatch.setattr("kin_cli.plan.memory_limit", lambda limit=limit: limit)
        plan = make_plan(wanted)
        assert plan.workers == workers
        assert plan.summary()["memory_limit_bytes"] == limit
        assert any("cgroup" in note for note in plan.notes()) == (limit < one)
    fixed = settings(photo, tiny_generator, tmp_path / "o.tif", workers=8)
    assert make_plan(fixed).workers == 8


def test_masks_and_thumbnails_are_known_by_their_bytes(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(mask)
    plan = make_plan(
        settings(photo, tiny_generator, tmp_path / "o.tif", tissue=mask, method="tin", thumbnail=photo, kernel=None)
    )
    for name, file in (("tissue", mask), ("thumbnail", photo)):
        assert plan.fingerprint()[name] == f"{file.name} (sha256 {hashlib.sha256(file.read_bytes()).hexdigest()})"
