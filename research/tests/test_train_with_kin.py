"""A generator in fine-tuning is normalized as kin's table norms do it, and learns under that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import train_with_kin
from scipy import ndimage

from kin_cli.geometry import Cell
from kin_cli.models.checkpoint import load_generator, save_generator
from kin_cli.models.exchange import exchange_norms
from kin_cli.models.resnet import ResnetGenerator, ResnetSpec
from kin_cli.norm.kernel import Kernel
from kin_cli.norm.layer import Field
from kin_cli.norm.lookup import Lookup
from kin_cli.slide.open import open_slide
from kin_cli.slide.view import open_view
from kin_cli.training.patches import to_tensor

SCRIPT = Path(__file__).resolve().parents[1] / "train_with_kin.py"
SIDE = (1100, 1300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """H&E that is denser in broad stripes, a guide that is brown there, and a generator with random weights."""
    made = tmp_path_factory.mktemp("rehearsal")
    dots = ndimage.gaussian_filter(np.random.default_rng(0).random((*SIDE, 3)), (2, 2, 0))
    he = 150.0 + 900.0 * (dots - dots.mean())
    stripes = np.arange(SIDE[1]) % 80 < 40
    he[:, stripes] -= 60
    guide = np.full((*SIDE, 3), 250.0)
    guide[:, stripes] = (70, 40, 20)
    for name, pixels in (("he.tif", he), ("guide.tif", guide)):
        scanned = {"photometric": "rgb", "resolution": (2e4, 2e4), "resolutionunit": 3}
        tifffile.imwrite(made / name, pixels.clip(0, 255).astype(np.uint8), tile=(256, 256), **scanned)
    torch.manual_seed(0)
    spec = ResnetSpec(width=4, blocks=1, antialias_down=True, antialias_up=True)
    save_generator(ResnetGenerator(spec), made / "start.safetensors", spec=spec)
    return made


def test_weights_are_those_of_the_kernel_over_tissue() -> None:
    tissue = np.random.default_rng(1).random((9, 11)) < 0.6
    values = np.where(tissue, np.random.default_rng(2).random((9, 11)), 0.0)
    kernel = Kernel.parse("gaussian:5:2")
    sums, known = (
        ndimage.convolve1d(
            ndimage.convolve1d(layer, kernel.taps(), axis=0, mode="constant"), kernel.taps(), mode="constant"
        )
        for layer in (values, tissue.astype(float))
    )
    cells = [Cell(int(row), int(col)) for row, col in np.argwhere(tissue)]
    found = train_with_kin.kernel_weights(cells, kernel) @ torch.from_numpy(values[tissue]).float()
    np.testing.assert_allclose(found.numpy(), (sums / known)[tissue], rtol=1e-5)


def test_a_patch_is_translated_as_kin_does_it(folder: Path) -> None:
    start = folder / "start.safetensors"
    with open_slide(folder / "he.tif") as slide, open_slide(folder / "guide.tif") as other:
        source = open_view(slide)
        rehearsal = train_with_kin.Rehearsal(
            load_generator(start).module, source, open_view(other), kernel=Kernel.parse("gaussian:7"), bf16=False
        )
        rehearsal.measure(np.random.default_rng(3))
        table = rehearsal.table
        network = exchange_norms(load_generator(start).module)
        for number, box in enumerate(table.boxes):
            pixels = to_tensor([source.read(box)])
            torch.testing.assert_close(network.measure(pixels)[0], table.own[number], rtol=1e-4, atol=1e-5)
            mean, std = table.smooth[number]
            field = Field(torch.stack([mean, 1.0 / std])[None, None, None], Lookup(512, 0, "nearest"), (1, 1))
            expected = network.apply(pixels, field)
            with torch.no_grad():
                found = rehearsal.translated(number, pixels)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert len(table.boxes) >= 4
    assert (table.own - table.smooth).abs().max() > 0.01


def run(folder: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "he.tif", "guide.tif", "--start", "start.safetensors", "-o", str(output)]
    return subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, check=False)


def test_it_learns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_with_kin, "_PX", 128)
    torch.manual_seed(0)
    with open_slide(folder / "he.tif") as slide, open_slide(folder / "guide.tif") as other:
        rehearsal = train_with_kin.Rehearsal(
            load_generator(folder / "start.safetensors").module,
            open_view(slide),
            open_view(other),
            kernel=Kernel.parse("gaussian:7"),
        )

        def error() -> float:
            rng = np.random.default_rng(7)
            rehearsal.measure(rng)
            with torch.no_grad():
                drawn = [rehearsal.draw(rng) for _ in range(20)]
                found = [
                    train_with_kin.distance(rehearsal.translated(number, patch), *rest)
                    for number, patch, *rest in drawn
                ]
            return float(torch.stack(found).mean())

        before = error()
        train_with_kin.train(rehearsal, steps=60, every=40, rate=3e-3, seed=0)
        assert error() < 0.5 * before


def test_its_file_is_a_generator(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "finished.safetensors"
    result = run(folder, output, "--steps", "2", "--every", "2")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("step 2: ")
    loaded = load_generator(output)
    assert '"steps": 2' in loaded.metadata["finished with"]
    assert loaded.module.spec == load_generator(folder / "start.safetensors").module.spec


def test_errors_are_one_line(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "no.safetensors", "--region", "0,0,400,400")
    assert result.returncode == 1
    assert "smaller than a patch" in result.stderr
    result = run(folder, tmp_path / "no.safetensors", "--start", "he.tif")
    assert result.returncode == 1
    assert result.stderr.startswith("error: he.tif")
    assert result.stderr.strip().count("\n") == 0
    assert list(tmp_path.iterdir()) == []
