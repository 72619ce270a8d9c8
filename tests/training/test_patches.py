"""Patches come from where they should, and the same number is the same patch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kin_cli.errors import InputError, UsageError
from kin_cli.geometry import Box
from kin_cli.slide.open import find_images
from kin_cli.training.patches import PatchSource, jittered, oriented, resized
from kin_cli.training.settings import PatchSettings

PLAIN = {"patch_px": 32, "flip": False}


def coordinates(path: Path, width: int, height: int) -> Path:
    """An image whose red and green are x and y."""
    y, x = np.mgrid[:height, :width]
    Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)).save(path)
    return path


def source(files: list[Path], **settings: object) -> PatchSource:
    patches = PatchSettings(files[0], files[0], **{**PLAIN, **settings})  # type: ignore[arg-type]
    return PatchSource(files, patches, stain="source", seed=3)


def test_a_patch_is_a_square_of_the_image_inside_its_region(tmp_path: Path) -> None:
    pool = source([coordinates(tmp_path / "a.png", 200, 150)], source_region=Box(40, 10, 100, 90))
    corners = set()
    for number in range(100):
        patch = pool.draw(number)
        x, y = int(patch[0, 0, 0]), int(patch[0, 0, 1])
        assert 40 <= x <= 140 - 32
        assert 10 <= y <= 100 - 32
        np.testing.assert_array_equal(patch[0, :, 0], np.arange(x, x + 32))
        np.testing.assert_array_equal(patch[:, 0, 1], np.arange(y, y + 32))
        corners.add((x, y))
    assert len(corners) > 80
    xs, ys = zip(*corners, strict=True)
    assert min(xs) < 50
    assert max(xs) > 98
    assert min(ys) < 16
    assert max(ys) > 60


@pytest.mark.parametrize("region", [None, Box(40, 10, 100, 90)])
def test_a_guide_is_cut_around_the_patch_turned_alike_and_black_beyond(tmp_path: Path, region: Box | None) -> None:
    file = coordinates(tmp_path / "a.png", 200, 150)
    settings = PatchSettings(file, file, patch_px=32, rotate=True, source_region=region, guide=file, guide_shift_px=16)
    pool = PatchSource([file], settings, stain="source", seed=3, guides=[file])
    without = PatchSource([file], settings, stain="source", seed=3)
    beyond = 0
    for number in range(60):
        patch, guide = pool.draw_guided(number)
        assert guide is not None
        assert guide.shape == (64, 64, 3)
        np.testing.assert_array_equal(guide[16:48, 16:48], patch)
        np.testing.assert_array_equal(patch, without.draw(number))
        box = region or Box(0, 0, 200, 150)
        turned = np.pad(patch.astype(int), ((16, 16), (16, 16), (0, 0)), mode="reflect", reflect_type="odd")[..., :2]
        inside = (turned >= [box.x, box.y]).all(-1) & (turned < [box.right, box.bottom]).all(-1)
        np.testing.assert_array_equal(guide[..., :2], turned * inside[..., None])
        beyond += int((~inside).sum())
    assert beyond > 0
    pool.close()


def test_only_the_source_is_jittered_by_its_own_jitter(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(np.full((64, 64, 3), 100, np.uint8)).save(file)
    settings = PatchSettings(file, file, patch_px=32, source_jitter=0.3, guide=file)
    patch, guide = PatchSource([file], settings, stain="source", seed=0, guides=[file]).draw_guided(1)
    assert not (patch == 100).any()
    assert guide is not None
    assert set(np.unique(guide)) == {0, 100}
    assert (PatchSource([file], settings, stain="target", seed=0).draw(1) == 100).all()


def test_guides_of_other_numbers_or_sizes_are_refused(tmp_path: Path) -> None:
    one, two = (coordinates(tmp_path / f"{name}.png", 200, 150) for name in "ab")
    other = coordinates(tmp_path / "c.png", 200, 149)
    settings = PatchSettings(one, one, patch_px=32)
    with pytest.raises(UsageError, match="--guide names 1 files for 2 of --source"):
        PatchSource([one, two], settings, stain="source", seed=0, guides=[one])
    with pytest.raises(InputError, match=r"c.png: has 200×149 px, and .*b.png has 200×150") as raised:
        PatchSource([one, two], settings, stain="source", seed=0, guides=[one, other])
    assert "frame" in str(raised.value)


def test_a_patch_depends_on_seed_stain_and_number_alone(tmp_path: Path) -> None:
    file = coordinates(tmp_path / "a.png", 200, 200)
    settings = PatchSettings(file, file, patch_px=32, rotate=True, scale=0.2, jitter=0.2)
    first, second = (PatchSource([file], settings, stain="source", seed=1) for _ in range(2))
    backwards = [second.draw(number) for number in reversed(range(8))][::-1]
    for number, patch in enumerate(backwards):
        np.testing.assert_array_equal(first.draw(number), patch)
        assert patch.shape == (32, 32, 3)
    other_seed = PatchSource([file], settings, stain="source", seed=2).draw(0)
    other_stain = PatchSource([file], settings, stain="target", seed=1).draw(0)
    assert not np.array_equal(other_seed, backwards[0])
    assert not np.array_equal(other_stain, backwards[0])


def test_images_are_drawn_in_proportion_to_their_area(tmp_path: Path) -> None:
    small, large = tmp_path / "a.png", tmp_path / "b.png"
    Image.new("RGB", (64, 64), (10, 0, 0)).save(small)
    Image.new("RGB", (256, 128), (200, 0, 0)).save(large)
    pool = source([small, large])
    from_large = sum(pool.draw(number)[0, 0, 0] == 200 for number in range(300))
    # candidate corners: 9 · 9 of the small one, 57 · 25 of the large one
    assert from_large > 260
    assert from_large < 300
    assert pool.capacity == (64 * 64 + 256 * 128) // 32**2


def test_fractions_of_tissue_border_and_background(shared_data: Path) -> None:
    file = shared_data / "CMU-1-Small-Region.svs"
    half = {"patch_px": 128, "min_tissue": 0.6}
    spread = {}
    for name, fractions in {
        "tissue": {},
        "border": {"border_fraction": 1.0},
        "background": {"background_fraction": 1.0},
    }.items():
        pool = source([file], **half, **fractions)
        patches = np.stack([pool.draw(number) for number in range(24)])
        # background of that slide is grey level 240 and smooth
        spread[name] = float((patches.min(-1) < 225).mean())
        pool.close()
    assert spread["tissue"] > 0.55
    assert spread["background"] < 0.02
    assert spread["background"] < spread["border"] < spread["tissue"]
    assert pool.mpp == pytest.approx(0.499)


def test_slides_are_read_at_the_asked_resolution(shared_data: Path) -> None:
    pool = source([shared_data / "CMU-1-Small-Region.svs"], mpp=1.0, patch_px=64)
    assert pool.mpp == 1.0
    assert pool.draw(0).shape == (64, 64, 3)
    pool.close()


def test_too_small_images_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no slide or image"):
        find_images(tmp_path)
    with pytest.raises(InputError, match=r"a\.png: 20×40 px is smaller than a patch of 32 px"):
        source([coordinates(tmp_path / "a.png", 20, 40)])
    assert [file.name for file in find_images(tmp_path)] == ["a.png"]


@pytest.mark.parametrize(
    "bad", [{"patch_px": 33}, {"background_fraction": 1.5}, {"border_fraction": 0.6, "background_fraction": 0.6}]
)
def test_senseless_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        PatchSettings(Path("a"), Path("b"), **bad)  # type: ignore[arg-type]


def test_orientations_are_the_eight_of_the_square() -> None:
    patch = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    rng = np.random.default_rng(0)
    seen = {oriented(patch, rng, flip=True, rotate=True).tobytes() for _ in range(200)}
    wanted = {np.rot90(p, k).tobytes() for p in (patch, patch[:, ::-1]) for k in range(4)}
    assert seen == wanted


def test_resizing_and_jitter_keep_flat_colours_flat() -> None:
    flat = np.full((20, 20, 3), (200, 120, 60), np.uint8)
    np.testing.assert_array_equal(resized(flat, 32), np.full((32, 32, 3), (200, 120, 60), np.uint8))
    changed = jittered(flat, np.random.default_rng(0), amount=0.2)
    assert len(np.unique(changed.reshape(-1, 3), axis=0)) == 1
    densities = [-np.log(image[0, 0] / 255.0) for image in (flat, changed)]
    assert np.all(np.abs(densities[1] / densities[0] - 1) < 0.22)
    assert not np.array_equal(flat, changed)
