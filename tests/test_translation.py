"""Whole translations: exact sizes, invariances, resume, tissue and background, and slides of odd shapes."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
import pyvips
import tifffile
import tiffslide
import torch
from PIL import Image

from kin_cli.errors import OutputError
from kin_cli.geometry import Box
from kin_cli.models.checkpoint import load_generator
from kin_cli.models.exchange import exchange_norms
from kin_cli.norm.layer import Field
from kin_cli.norm.lookup import Lookup
from kin_cli.passes.windows import WindowGrid
from kin_cli.plan import make_plan
from kin_cli.progress import SilentProgress
from kin_cli.settings import Settings
from kin_cli.translation import carry_out, translate
from tests.helpers.generators import Identity
from tests.helpers.processes import kin
from tests.helpers.slides import write_photo
from tests.helpers.translations import PATCH, SMALL, settings


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smooth colourful image of a size that is no multiple of anything, with a white right third."""
    file = write_photo(tmp_path_factory.mktemp("photo") / "photo.png", (401, 275), coarse=(17, 12))
    pixels = np.asarray(Image.open(file)).copy()
    pixels[:, 270:] = 244
    Image.fromarray(pixels).save(file)
    return file


def run(slide: Path, model: Path, output: Path, **changes: object) -> np.ndarray:
    translate(settings(slide, model, output, **changes), SilentProgress())
    return tifffile.imread(output)


def run_identity(wanted: Settings) -> None:
    plan = make_plan(wanted)
    generator = dataclasses.replace(plan.generator, module=Identity(), norm_layers=1, channels=3)
    with plan.view.slide:
        carry_out(dataclasses.replace(plan, generator=generator), SilentProgress())


@pytest.mark.parametrize("region", [None, Box(3, 5, 1001, 733), Box(0, 0, 512, 512), Box(17, 9, 1, 700)])
def test_an_identity_generator_reproduces_the_slide(
    tmp_path: Path, tiny_generator: Path, shared_data: Path, region: Box | None
) -> None:
    slide, output = shared_data / "CMU-1-Small-Region.svs", tmp_path / "out.ome.tif"
    run_identity(settings(slide, tiny_generator, output, patch_px=512, region=region, halo_px=32))
    with openslide.OpenSlide(slide) as source:
        box = region or Box(0, 0, *source.dimensions)
        expected = np.asarray(source.read_region((box.x, box.y), 0, (box.width, box.height)).convert("RGB"))
    np.testing.assert_array_equal(tifffile.imread(output), expected)


@pytest.mark.parametrize("patch_px", [64, 100, 128, 508])
def test_an_identity_generator_keeps_every_patch_size_exact(
    tmp_path: Path, photo: Path, tiny_generator: Path, patch_px: int
) -> None:
    run_identity(settings(photo, tiny_generator, tmp_path / "out.tif", patch_px=patch_px, halo_px=12))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), np.asarray(Image.open(photo)))


@pytest.mark.parametrize("architecture", ["cut", "cyclegan", "urust"])
def test_kernel_one_is_the_original_generator(shared_reference: Path, architecture: str) -> None:
    file, x = shared_reference / f"{architecture}.pth", torch.rand(2, 3, 128, 128) * 2 - 1
    plain = load_generator(file).module
    network = exchange_norms(load_generator(file).module)
    stats = network.measure(x)
    table = torch.stack([stats[:, 0], 1 / stats[:, 1]], dim=1)[:, None, None]
    out = network.apply(x, Field(table, Lookup(128, 0, "nearest"), (1, 1)))
    with torch.inference_mode():
        torch.testing.assert_close(out, plain(x), atol=1e-4, rtol=0)


def test_the_in_preset_is_the_original_generator_patch_by_patch(
    tmp_path: Path, photo: Path, tiny_generator: Path
) -> None:
    got = run(photo, tiny_generator, tmp_path / "out.tif", method="in", kernel=None).astype(int)
    plain, pixels = load_generator(tiny_generator).module, np.asarray(Image.open(photo))
    # Only the colourful patches: the white ones have no spread, and dividing by it makes noise of rounding errors.
    for y, x in np.ndindex(275 // PATCH, 256 // PATCH):
        part = slice(y * PATCH, (y + 1) * PATCH), slice(x * PATCH, (x + 1) * PATCH)
        with torch.inference_mode():
            tensor = torch.from_numpy(pixels[part].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            expected = ((plain(tensor)[0].permute(1, 2, 0) * 0.5 + 0.5) * 255 + 0.5).clamp(0, 255).numpy().astype(int)
        assert np.abs(got[part] - expected).max() <= 1


def test_batches_workers_and_order_do_not_change_a_byte(
    tmp_path: Path, photo: Path, tiny_generator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(photo, tiny_generator, tmp_path / "o.ome.tif", batch_size=1, workers=1)
    expected = (tmp_path / "o.ome.tif").read_bytes()
    for batch, workers in ((3, 2), (8, 4)):
        run(photo, tiny_generator, tmp_path / "o.ome.tif", batch_size=batch, workers=workers, overwrite=True)
        assert (tmp_path / "o.ome.tif").read_bytes() == expected
    straight = WindowGrid.blocks

    def shuffled(self: WindowGrid, *args: object, **kwargs: object) -> list[object]:
        return random.Random(1).sample(blocks := list(straight(self, *args, **kwargs)), len(blocks))  # type: ignore[arg-type]

    monkeypatch.setattr(WindowGrid, "blocks", shuffled)
    run(photo, tiny_generator, tmp_path / "o.ome.tif", overwrite=True)
    assert (tmp_path / "o.ome.tif").read_bytes() == expected


@pytest.mark.parametrize("scattered", [False, True])
def test_with_halo_and_bilinear_interpolation_windows_of_any_size_agree(
    tmp_path: Path, photo: Path, tiny_generator: Path, scattered: bool
) -> None:
    changes: dict[str, object] = {"interpolation": "bilinear", "halo_px": None}
    if scattered:  # windows are of many shapes then
        image = pyvips.Image.new_from_file(str(photo))
        mask = np.zeros((image.height, image.width), np.uint8)
        for row, col in ((0, 1), (1, 0), (2, 2), (2, 3), (3, 3)):
            mask[row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH] = 255
        pyvips.Image.new_from_array(mask).pngsave(str(tmp_path / "mask.png"))
        changes["tissue"] = tmp_path / "mask.png"
    results = [
        run(photo, tiny_generator, tmp_path / f"{window}.tif", window_px=window, **changes)
        for window in (PATCH, 2 * PATCH, 8 * PATCH)
    ]
    for other in results[1:]:
        assert np.abs(results[0].astype(int) - other).max() <= 1


def test_any_reader_sees_all_levels_and_the_pixel_size(tmp_path: Path, tiny_generator: Path, shared_data: Path) -> None:
    slide, output = shared_data / "CMU-1-Small-Region.svs", tmp_path / "o.ome.tif"
    run(slide, tiny_generator, output, patch_px=512, compression="jpeg", region=Box(0, 0, 2100, 1100))
    sizes = [(2100, 1100), (1050, 550), (525, 275)]
    with openslide.OpenSlide(output) as reader:
        assert list(reader.level_dimensions) == sizes
        assert float(reader.properties["openslide.mpp-x"]) == pytest.approx(0.499, rel=1e-3)
    with tiffslide.TiffSlide(output) as reader:
        assert list(reader.level_dimensions) == sizes
        assert float(reader.properties["tiffslide.mpp-x"]) == pytest.approx(0.499, rel=1e-3)
    with tifffile.TiffFile(output) as reader:
        assert reader.is_ome
        assert [level.shape[1::-1] for level in reader.series[0].levels] == sizes
    for page, (width, height) in enumerate(sizes):
        image = pyvips.Image.new_from_file(str(output), page=page)
        assert (image.width, image.height) == (width, height)
        assert 1e3 / image.xres == pytest.approx(0.499 * 2100 / width, rel=1e-3)


def test_an_interrupted_run_continues_to_the_same_bytes(
    tmp_path: Path, photo: Path, tiny_generator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    wanted = settings(photo, tiny_generator, tmp_path / "a" / "o.ome.tif", tissue="auto")
    translate(wanted, SilentProgress())
    again = dataclasses.replace(wanted, output=dataclasses.replace(wanted.output, path=tmp_path / "b" / "o.ome.tif"))

    class Interrupting(SilentProgress):
        left = 9

        def stage(self, name: str, total: int, unit: str):  # type: ignore[no-untyped-def]
            return self._stage()

        def _stage(self):  # type: ignore[no-untyped-def]
            from contextlib import contextmanager

            @contextmanager
            def stage():  # type: ignore[no-untyped-def]
                def advance(_: int) -> None:
                    Interrupting.left -= 1
                    if Interrupting.left == 0:
                        raise KeyboardInterrupt

                yield advance

            return stage()

    stops = 0
    while not again.output.path.exists():
        Interrupting.left = 9 + stops
        try:
            translate(again, Interrupting())
        except KeyboardInterrupt:
            stops += 1
            assert not again.output.path.exists()
    assert stops >= 3
    assert again.output.path.read_bytes() == wanted.output.path.read_bytes()
    assert not list((tmp_path / "b").glob("*kin-work*"))


def test_unfinished_work_of_other_settings_is_refused_by_name(
    tmp_path: Path, photo: Path, tiny_generator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "o.ome.tif"
    monkeypatch.setattr("kin_cli.job.apply_slide", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(photo, tiny_generator, output)
    monkeypatch.undo()
    with pytest.raises(OutputError, match=r"kernel: \"gaussian:3\" → \"constant:3\""):
        run(photo, tiny_generator, output, kernel="constant:3")
    run(photo, tiny_generator, output, kernel="constant:3", overwrite=True)
    assert output.exists()


@pytest.fixture
def tissue_mask(tmp_path: Path) -> Path:
    """The left two thirds of the photo are tissue."""
    mask = np.zeros((275, 401), np.uint8)
    mask[:, :260] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def test_cells_without_tissue_are_filled_with_the_generators_background(
    tmp_path: Path, photo: Path, tiny_generator: Path, tissue_mask: Path
) -> None:
    filled = run(photo, tiny_generator, tmp_path / "fill.tif", tissue=tissue_mask)
    kept = run(photo, tiny_generator, tmp_path / "keep.tif", tissue=tissue_mask, background="keep")
    white = run(photo, tiny_generator, tmp_path / "white.tif", tissue=tissue_mask, background="white")
    beyond = slice(None), slice(5 * PATCH, None)  # columns 5 and 6 of the grid hold no tissue
    np.testing.assert_array_equal(kept[beyond], np.asarray(Image.open(photo))[beyond])
    assert (white[beyond] == 255).all()
    for other in (kept, white):
        np.testing.assert_array_equal(filled[:, : 5 * PATCH], other[:, : 5 * PATCH])
    background = filled[:, 290 : 5 * PATCH].reshape(-1, 3).mean(axis=0)  # translated background beside it
    assert np.abs(filled[beyond].reshape(-1, 3).mean(axis=0) - background).max() < 4


def test_no_step_is_left_between_translated_and_filled_background(tmp_path: Path, tiny_generator: Path) -> None:
    pixels = np.full((400, 640, 3), 243, np.uint8)
    pixels += np.random.default_rng(0).integers(0, 3, (400, 640, 1), np.uint8)
    pixels[150:250, 200:330] = np.random.default_rng(1).integers(60, 200, (100, 130, 3), np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", pixels, photometric="rgb", tile=(128, 128))
    filled, white = (
        run(tmp_path / "slide.tif", tiny_generator, tmp_path / f"{mode}.tif", tissue="auto", background=mode).astype(
            int
        )
        for mode in ("fill", "white")
    )
    np.testing.assert_array_equal(filled[150:250, 200:330], white[150:250, 200:330])
    translated = (white != 255).any(axis=2)
    rows, cols = np.flatnonzero(translated.any(axis=1)), np.flatnonzero(translated.any(axis=0))
    assert rows[0] > 0
    assert cols[-1] < 639
    edges = [image[rows[0] - 1 : rows[0] + 1, cols[0] : cols[-1] + 1] for image in (filled, white)]
    steps = [np.abs(edge[1].mean(axis=0) - edge[0].mean(axis=0)).max() for edge in edges]
    assert steps[0] < 0.5 < steps[1]


def test_background_neither_enters_the_statistics_nor_costs_work(
    tmp_path: Path, photo: Path, tiny_generator: Path, tissue_mask: Path
) -> None:
    record = translate(settings(photo, tiny_generator, tmp_path / "o.tif", tissue=tissue_mask), SilentProgress())
    plan = record["plan"]
    assert isinstance(plan, dict)
    assert (plan["patches"], plan["patches_with_tissue"]) == (35, 25)
    pixels = np.asarray(Image.open(photo)).copy()
    pixels[:, 5 * PATCH :] = 3
    Image.fromarray(pixels).save(tmp_path / "changed.png")
    other = run(tmp_path / "changed.png", tiny_generator, tmp_path / "p.tif", tissue=tissue_mask)
    np.testing.assert_array_equal(other[:, : 5 * PATCH], tifffile.imread(tmp_path / "o.tif")[:, : 5 * PATCH])


def test_the_record_tells_how_the_output_was_made(tmp_path: Path, photo: Path, tiny_generator: Path) -> None:
    run(photo, tiny_generator, tmp_path / "o.ome.tif")
    record = json.loads((tmp_path / "o.ome.tif.json").read_text())
    assert record["settings"]["model sha256"] == load_generator(tiny_generator).sha256
    assert record["settings"]["kernel"] == "gaussian:3"
    with tifffile.TiffFile(tmp_path / "o.ome.tif") as tiff:
        assert record["settings"]["model sha256"] in (tiff.ome_metadata or "")
    assert record["peak_rss_bytes"] > 0
    assert set(record["seconds"]) >= {"measure", "apply", "pyramid"}


def test_a_flat_output_is_the_pyramids_base(tmp_path: Path, photo: Path, tiny_generator: Path) -> None:
    pyramid = run(photo, tiny_generator, tmp_path / "o.tif")
    translate(settings(photo, tiny_generator, tmp_path / "o.png"), SilentProgress())
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "o.png")), pyramid)


@pytest.mark.parametrize(("mpp", "warned"), [(0.5, False), (0.53, False), (0.25, True), (1.0, True), (None, False)])
def test_another_pixel_size_than_the_generators_is_told(
    tmp_path: Path, photo: Path, tiny_generator: Path, mpp: float | None, warned: bool
) -> None:
    plan = make_plan(settings(photo, tiny_generator, tmp_path / "o.tif", source_mpp=mpp))
    with plan.view.slide:
        trained = dataclasses.replace(plan.generator, metadata={"mpp": "0.5056"})
        warnings = dataclasses.replace(plan, generator=trained).warnings()
        assert any("consider --mpp" in warning for warning in warnings) == warned


@pytest.mark.parametrize(("width", "height"), [(1, 1), (96, 96), (128, 300), (700, 5)])
def test_small_images_are_written_so_that_libvips_reads_them(
    tmp_path: Path, tiny_generator: Path, width: int, height: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    pyramid = run(tmp_path / "small.png", tiny_generator, tmp_path / "o.ome.tif")
    translate(settings(tmp_path / "small.png", tiny_generator, tmp_path / "o.png"), SilentProgress())
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "o.png")), pyramid)
    np.testing.assert_array_equal(pyvips.Image.new_from_file(str(tmp_path / "o.ome.tif")).numpy(), pyramid)


def odd_slides(folder: Path) -> Iterator[Path]:
    def tiff(name: str, pixels: np.ndarray, **options: object) -> Path:
        tifffile.imwrite(folder / name, pixels, photometric="rgb", tile=(256, 256), compression="deflate", **options)
        return folder / name

    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8)
    yield tiff("black.tif", np.zeros((300, 300, 3), np.uint8))
    yield tiff("constant.tif", np.full((300, 300, 3), 200, np.uint8))
    yield tiff("transparent.tif", np.zeros((300, 300, 4), np.uint8), extrasamples=["unassalpha"])
    Image.fromarray(np.zeros((90, 90, 4), np.uint8)).save(folder / "transparent.png")
    yield folder / "transparent.png"
    yield tiff("pixel.tif", noise[:1, :1])
    yield tiff("wide.tif", np.tile(noise[:1], (1, 20, 1)))
    yield tiff("tall.tif", np.tile(noise[:, :1], (20, 1, 1)))
    for name, per_cm in (("huge", 10), ("tiny", 1e8)):
        yield tiff(f"{name}_mpp.tif", noise, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")


def test_odd_slides_are_translated_whole(tmp_path: Path, tiny_generator: Path) -> None:
    for slide in odd_slides(tmp_path):
        output = tmp_path / f"{slide.name}.ome.tif"
        command = ("translate", slide, "-m", tiny_generator, "-o", output, "--patch-size", "128")
        result = kin(*command, "--tissue", "none")
        assert result.code == 0, f"{slide.name}: {result.err}"
        assert kin("check", output).code == 0
        assert tifffile.imread(output).shape[:2] == tifffile.imread(slide).shape[:2] if slide.suffix == ".tif" else True


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1)])
def test_a_line_of_pixels_is_a_slide(tmp_path: Path, tiny_generator: Path, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    slide, output = tmp_path / "line.tif", tmp_path / "line.ome.tif"
    tifffile.imwrite(slide, pixels, photometric="rgb", tile=(256, 256), compression="deflate")
    result = kin("translate", slide, "-m", tiny_generator, "-o", output, "--patch-size", "128")
    assert result.code == 0, result.err
    assert kin("check", output).code == 0
    assert tifffile.imread(output).shape[:2] == shape


@pytest.mark.parametrize("mpp", ["1000", "0.002"])
def test_a_wrong_pixel_size_is_kept_if_the_user_insists(
    slide: Path, tiny_generator: Path, tmp_path: Path, mpp: str
) -> None:
    output = tmp_path / "out.ome.tif"
    assert kin("translate", slide, "-m", tiny_generator, "-o", output, *SMALL, "--source-mpp", mpp).code == 0
    assert kin("check", output).code == 0
    assert json.loads(kin("info", output, "--json").out)["size"] == [520, 1040]


@pytest.mark.parametrize("options", ["--source-mpp 1e30", "--source-mpp 1e-12", "--mpp nan", "--mpp 1e-300"])
def test_absurd_pixel_sizes_are_refused(slide: Path, tiny_generator: Path, tmp_path: Path, options: str) -> None:
    result = kin("translate", slide, "-m", tiny_generator, "-o", tmp_path / "o.tif", *options.split())
    assert result.code == 2
    assert "is not within" in result.err
    result = kin("translate", slide, "-m", tiny_generator, "--mpp", "0.001", "--source-mpp", "10000", "--dry-run")
    assert result.code == 2
    assert "too many" in result.err
