"""``--measure-size``: pass 1 looks at the middle of each patch only."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor, nn

from kin_cli.errors import NoTissueError, Stopped
from kin_cli.geometry import Box, Cell, Floats, Grid, Pixels, Size
from kin_cli.models.checkpoint import load_generator
from kin_cli.norm.table import StatTable
from kin_cli.passes.engine import Engine, EnginePool, Execution
from kin_cli.passes.measure import measure_slide, thumbnail_statistics
from kin_cli.plan import make_plan
from kin_cli.progress import Advance, SilentProgress
from kin_cli.settings import Settings
from kin_cli.slide.synthetic import SampleSlide
from kin_cli.slide.view import open_view
from kin_cli.translation import translate
from tests.helpers.processes import kin
from tests.helpers.slides import ArraySlide, write_photo
from tests.helpers.translations import PATCH, settings

SIDE = 32


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    return write_photo(file, (4 * PATCH, 3 * PATCH), coarse=(13, 9))


def wanted_settings(slide: Path, model: Path, output: Path, **changes: object) -> Settings:
    return settings(slide, model, output, **{"kernel": "global", "measure_px": SIDE, **changes})


def tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.inference_mode()
def test_the_statistics_are_those_of_the_middle(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    translate(wanted_settings(photo, tiny_generator, tmp_path / "o.tif"), SilentProgress())
    got, pixels = tifffile.imread(tmp_path / "o.tif").astype(int), np.asarray(Image.open(photo))
    network = load_generator(tiny_generator).module
    norms = [layer for layer in network.modules() if isinstance(layer, nn.InstanceNorm2d)]
    found: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in norms}

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        var, mean = torch.var_mean(inputs[0], dim=(2, 3), keepdim=True, correction=0)
        found[norm].append((mean, (var + norm.eps).sqrt()))

    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    corners = [(y, x) for y in range(0, 3 * PATCH, PATCH) for x in range(0, 4 * PATCH, PATCH)]
    for y, x in corners:
        network(tensor(pixels[y + 16 : y + 48, x + 16 : x + 48]))
    for hook in hooks:
        hook.remove()
    for norm, stats in found.items():
        mean, std = (torch.stack(part).mean(0) for part in zip(*stats, strict=True))
        norm.forward = lambda x, mean=mean, std=std: (x - mean) / std  # type: ignore[method-assign]
    for y, x in corners:
        made = network(tensor(pixels[y : y + PATCH, x : x + PATCH]))[0].permute(1, 2, 0)
        expected = ((made * 0.5 + 0.5) * 255 + 0.5).clamp(0, 255).numpy().astype(int)
        assert np.abs(got[y : y + PATCH, x : x + PATCH] - expected).max() <= 1


def test_patches_whose_middle_is_background_are_translated_but_not_measured(
    photo: Path, tiny_generator: Path, tmp_path: Path
) -> None:
    mask = np.zeros((3 * PATCH, 4 * PATCH), np.uint8)
    mask[:, : 2 * PATCH + 8] = 255  # of the third column less than what lies beside its middle
    Image.fromarray(mask).save(tmp_path / "mask.png")
    plan = make_plan(
        wanted_settings(photo, tiny_generator, tmp_path / "o.tif", tissue=tmp_path / "mask.png", kernel="gaussian:3")
    )
    with plan.view.slide:
        assert (plan.weights > 0).tolist() == [[True, True, True, False]] * 3
        assert (plan.table_weights > 0).tolist() == [[True, True, False, False]] * 3
    record = translate(plan.settings, SilentProgress())
    assert (record["plan"]["patches_with_tissue"], record["plan"]["patches_measured"]) == (9, 6)  # type: ignore[index]
    corner = tmp_path / "corner.png"
    mask[:] = 0
    mask[:8, :8] = 255
    Image.fromarray(mask).save(corner)
    with pytest.raises(NoTissueError, match="no tissue in the middle of any patch"):
        make_plan(wanted_settings(photo, tiny_generator, tmp_path / "p.tif", tissue=corner))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--measure-size", "100"), "measure size 100 is not a multiple of 4 from 128 to 512"),
        (("--measure-size", "516"), "measure size 516"),
        (("--measure-size", "258"), "measure size 258"),
        (("--measure-size", "256", "--kernel", "1"), "needs a kernel of size 3 or more"),
        (("--measure-size", "256", "--method", "in"), "needs a kernel of size 3 or more"),
        (("--measure-size", "256", "--method", "tin"), "needs a kernel of size 3 or more"),
    ],
)
def test_what_makes_no_sense_is_one_line(photo: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = kin("translate", photo, "-o", tmp_path / "o.tif", *options)
    assert result.code == 2
    assert message in result.err.strip().splitlines()[-1]


def test_the_plan_and_the_box_say_it(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    shown = kin("translate", photo, "-m", tiny_generator, "-o", tmp_path / "o.tif", "--measure-size", 384, "--dry-run")
    assert "the middle 384 px measured" in shown.out


def test_no_thread_reads_on_after_a_failure(tiny_generator: Path) -> None:
    """A slide is closed as soon as pass 1 has failed: whoever still reads it then crashes the process."""
    reading, slow = [0], threading.Event()

    class Slow(SampleSlide):
        def _fetch(self, level: int, box: Box) -> Pixels:
            reading[0] += 1
            slow.wait(0.05)
            try:
                return super()._fetch(level, box)
            finally:
                reading[0] -= 1

    view = open_view(Slow(Size(1024, 1024)))
    pool = EnginePool([Engine(load_generator(tiny_generator), device=torch.device("cpu"), precision="fp32")])

    class Stopping(SilentProgress):
        @contextmanager
        def stage(self, name: str, total: int, unit: str = "tiles") -> Iterator[Advance]:
            def advance(_count: int, _detail: str = "", /) -> None:
                raise Stopped("stopped", exit_code=75)

            yield advance

    class Nowhere(StatTable):
        def __init__(self) -> None:
            self.channels = pool.channels

        def __contains__(self, cell: Cell) -> bool:
            return False

        def write(self, cell: Cell, stats: Floats) -> None:
            pass

    grid = Grid(view.size, 128)
    try:
        measure_slide(view, grid, list(grid), Nowhere(), side_px=128, execution=Execution(pool, 1, 4, Stopping()))
    except Stopped:  # its traceback holds what the frames held
        assert reading[0] == 0
    else:
        pytest.fail("it was not stopped")


def test_the_authors_thumbnail_is_squashed_to_a_patch() -> None:
    """Against Pillow's reduction of the whole picture by its box filter."""
    picture = np.random.default_rng(0).integers(0, 256, (128, 512, 3), dtype=np.uint8)
    image = Image.fromarray(picture).resize((64, 64), Image.Resampling.BOX)
    seen = []

    class Recorder:
        stride = 4

        def measure(self, images: list[Pixels], *, alone: bool) -> Floats:
            assert alone
            seen.extend(images)
            return np.ones((1, 2, 5), np.float32)

    view = open_view(ArraySlide(picture))
    thumbnail_statistics(view, None, engine=Recorder(), patch_px=64, squash=True)  # type: ignore[arg-type]
    assert seen[0].shape == (64, 64, 3)
    assert np.abs(seen[0].astype(int) - np.asarray(image)).max() <= 1
