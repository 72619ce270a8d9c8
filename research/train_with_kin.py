"""Fine-tune a generator under KIN's statistics.

    python research/train_with_kin.py he.tif guide.tif --start generator.safetensors -o finished.safetensors \\
        --region 0,0,13346,13000

Trained with InstanceNorm, a generator learns to use the statistics of the whole patch as a cue. KIN averages them over
7 × 7 patches, which blurs the cue: what was dense brown beside blue becomes greyish tan throughout. This script trains
by regression to ``guide.aligned_target``, and normalizes each patch as KIN does, by smoothed statistics of its grid.
Every ``--every`` steps a table of the region is measured for a grid with a new random offset. In between, a patch's own
statistics are measured again and shifted by as much as smoothing shifted them in the table. No gradient flows through
statistics. ``guide.tif`` comes from ``sharpen_guide.py``.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from dab import dab_density
from guide import aligned_target, known
from torch import Tensor, nn
from torch.nn import functional as F

from kin_cli.commands.parameters import RegionType
from kin_cli.errors import InputError, KinError, ModelError, UsageError
from kin_cli.geometry import Box, Cell, Grid, Size
from kin_cli.models.checkpoint import load_generator, save_generator
from kin_cli.models.resnet import ResnetGenerator
from kin_cli.norm.kernel import Kernel
from kin_cli.slide.open import open_slide
from kin_cli.slide.tissue import detect_tissue
from kin_cli.slide.view import SlideView, open_view
from kin_cli.training.networks import Ema
from kin_cli.training.patches import oriented, to_tensor

_PX = 512
_WHITE = 251.0
_CELL_PX = 8  # of the tissue mask
_LEAST_TISSUE = 0.06  # of a patch
_RICH = 0.2  # mean decadic density of a guide's patch from which on it is drawn more often
_RICH_FRACTION = 0.3
_BROWN_WEIGHT = 0.6  # of a pixel of the densest guide, beyond 1
_LARGEST_GRADIENT = 5.0
_STAIN_JITTER = (0.08, 0.04)  # of all channels together, of each


class KinNorm(nn.InstanceNorm2d):
    """InstanceNorm2d that stores its input's statistics while ``noting``, and otherwise uses those it was given."""

    def __init__(self, norm: nn.InstanceNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps)
        self.noting = True
        self.mean, self.std = torch.zeros(norm.num_features), torch.ones(norm.num_features)

    def forward(self, x: Tensor) -> Tensor:  # (1, C, H, W)
        """Normalize one patch."""
        if not self.noting:
            return F.batch_norm(x, self.mean, self.std**2, training=False, eps=0.0)
        # of one patch batch norm is instance norm, several times as fast in bf16, and keeps its statistics, unbiased
        self.mean, var, pixels = torch.zeros_like(self.mean), torch.zeros_like(self.std), x[0, 0].numel()
        made = F.batch_norm(x, self.mean, var, training=True, momentum=1.0, eps=self.eps)
        self.std = (var * (pixels - 1) / pixels + self.eps).sqrt()
        return made


def rehearsing(network: nn.Module) -> list[KinNorm]:
    """Replace every InstanceNorm2d by a ``KinNorm``, in place, and return them in the order of the network."""
    layers = []
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.InstanceNorm2d):
            if layer.affine:
                raise ModelError(f"layer {name} has weights of its own", "only plain InstanceNorm can be rehearsed")
            parent, _, last = name.rpartition(".")
            layers.append(KinNorm(layer))
            setattr(network.get_submodule(parent), last, layers[-1])
    return layers


@dataclass(frozen=True)
class Table:
    """Statistics (n, 2, ΣC) of the patches of one grid, as measured and as smoothed by KIN, and the patches' boxes."""

    boxes: list[Box]
    own: Tensor
    smooth: Tensor

    def moved(self, number: int, now: Tensor) -> Tensor:
        """Smoothed statistics (2, ΣC) of a patch whose own have changed to ``now`` since the table was measured."""
        then, wanted = self.own[number], self.smooth[number]
        mean = now[0] + (wanted[0] - then[0]) / then[1] * now[1]
        return torch.stack([mean, wanted[1] / then[1] * now[1]])


def kernel_weights(cells: list[Cell], kernel: Kernel) -> Tensor:
    """Weights (n, n): row i holds those of all cells around cell i, with sum 1."""
    places = np.array([(cell.row, cell.col) for cell in cells])
    apart = places[:, None] - places[None]
    taps = np.pad(kernel.taps(), (0, 1))  # the last is for all that lies beyond
    weights = taps[np.where(abs(apart) <= kernel.radius, apart + kernel.radius, kernel.size)].prod(axis=-1)
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True)).float()


class Rehearsal:
    """A generator in training, its table of statistics, and the slide it is trained on."""

    def __init__(
        self, generator: ResnetGenerator, source: SlideView, guide: SlideView, *, kernel: Kernel, bf16: bool = True
    ) -> None:
        if min(source.size.width, source.size.height) < _PX:
            raise UsageError(f"{source.slide.path}: {source.size} px is smaller than a patch of {_PX} px", "--region")
        self._bf16 = bf16
        self.generator = generator.float().train().requires_grad_(True).to(memory_format=torch.channels_last)
        self.ema = Ema(self.generator, 0.99)
        self._norms = rehearsing(self.generator)
        self._source, self._guide, self._kernel = source, guide, kernel
        self._tissue_fraction = detect_tissue(source).fraction(Grid(source.size, _CELL_PX)).astype(np.float64)
        self.table: Table | None = None
        self._rich: list[int] = []

    def measure(self, rng: np.random.Generator) -> None:
        """Measure the table for a grid that begins at a random offset left of and above the region."""
        dx, dy = (int(v) for v in rng.integers(0, _PX, 2))
        size = self._source.size
        grid = Grid(Size(size.width + dx, size.height + dy), _PX)
        cells, boxes = [], []
        for cell in grid:
            x = min(max(grid.box(cell).x - dx, 0), size.width - _PX)
            y = min(max(grid.box(cell).y - dy, 0), size.height - _PX)
            rows, cols = (slice(v // _CELL_PX, (v + _PX) // _CELL_PX) for v in (y, x))
            if self._tissue_fraction[rows, cols].mean() > _LEAST_TISSUE:
                cells.append(cell)
                boxes.append(Box(x, y, _PX, _PX))
        if not cells:
            raise InputError(f"{self._source.slide.path}: no tissue in the region")
        own = torch.stack([self._noted(to_tensor([self._source.read(box)])) for box in boxes])
        smooth = torch.einsum("ij,jsc->isc", kernel_weights(cells, self._kernel), own)
        self.table = Table(boxes, own, smooth)
        dense = [dab_density(self._guide.read(box), white=_WHITE).mean() for box in boxes]
        self._rich = [i for i, value in enumerate(dense) if value > _RICH]

    def _noted(self, patch: Tensor) -> Tensor:
        """Statistics (2, ΣC) of a patch (1, 3, H, W) by InstanceNorm."""
        for norm in self._norms:
            norm.noting = True
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            self.generator(patch.contiguous(memory_format=torch.channels_last))
        return torch.stack([torch.cat([n.mean for n in self._norms]), torch.cat([n.std for n in self._norms])])

    def translated(self, number: int, patch: Tensor) -> Tensor:
        """Patch ``number`` of the table, (1, 3, H, W) in [-1, 1], as KIN translates it; differentiable."""
        assert self.table is not None
        mean, std = self.table.moved(number, self._noted(patch))
        first = 0
        for norm in self._norms:
            own = slice(first, first := first + norm.num_features)
            norm.noting, norm.mean, norm.std = False, mean[own], std[own]
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            made: Tensor = self.generator(patch.contiguous(memory_format=torch.channels_last))
        return made.float()

    def draw(self, rng: np.random.Generator) -> tuple[int, Tensor, Tensor, Tensor]:
        """A patch's number, the patch in jittered stain, the patch, and its guide; turned and mirrored at random."""
        assert self.table is not None
        often = self._rich if self._rich and rng.random() < _RICH_FRACTION else range(len(self.table.boxes))
        number = int(often[rng.integers(len(often))])
        box = self.table.boxes[number]
        both = np.concatenate([self._source.read(box), self._guide.read(box)], axis=-1)
        both = oriented(both, rng, flip=True, rotate=True)
        together, each = _STAIN_JITTER
        power = 1.0 + together * rng.uniform(-1.0, 1.0) + each * rng.uniform(-1.0, 1.0, 3)
        jittered = np.clip(243.0 * (np.maximum(both[..., :3], 2) / 243.0) ** power, 0, 255).astype(np.uint8)
        pictures = (jittered, both[..., :3], both[..., 3:])
        patch, plain, guide = (to_tensor([np.ascontiguousarray(picture)]) for picture in pictures)
        return number, patch, plain, guide


def train(rehearsal: Rehearsal, *, steps: int, every: int, rate: float, seed: int) -> None:
    """Regress to the painted target in L1; the learning rate rises over 60 steps and falls over the second half."""
    rng, started = np.random.default_rng(seed), time.monotonic()
    optimizer = torch.optim.Adam(rehearsal.generator.parameters(), betas=(0.9, 0.99))
    losses: list[float] = []
    for step in range(steps):
        if step % every == 0:
            rehearsal.measure(rng)
        number, patch, plain, guide = rehearsal.draw(rng)
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 2.0 * (steps - step) / steps, (step + 20) / 60)
        made = rehearsal.translated(number, patch)
        loss = distance(made, plain, guide)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(rehearsal.generator.parameters(), _LARGEST_GRADIENT)
        optimizer.step()
        rehearsal.ema.update(rehearsal.generator)
        losses.append(float(loss.detach()))
        if len(losses) == 20 or step == steps - 1:
            print(f"step {step + 1}: {np.mean(losses):.3f}, {time.monotonic() - started:.0f} s", flush=True)
            losses.clear()


def distance(made: Tensor, source: Tensor, guide: Tensor) -> Tensor:
    """L1 to the painted target, with more weight where the guide is dense; a scalar."""
    weight = known(guide) * (1.0 + _BROWN_WEIGHT * ((_WHITE / 127.5 - 1.0) - guide[:, 2:]).clamp(0.0, 2.0) / 2.0)
    return ((made - aligned_target(source, guide)).abs() * weight).sum() / weight.sum() / 3.0


def finish(
    source: Path, guide: Path, start: Path, output: Path, *, region: Box | None, options: dict[str, float]
) -> None:
    loaded = load_generator(start)
    if not isinstance(loaded.module, ResnetGenerator):
        raise ModelError(f"{start} is a {loaded.architecture} generator", "only ResNet generators can be trained")
    with open_slide(source) as slide, open_slide(guide) as other:
        if slide.levels[0] != other.levels[0]:
            raise InputError(f"{guide}: not the size of {source}", "make it with sharpen_guide.py")
        views = open_view(slide, region=region), open_view(other, region=region)
        rehearsal = Rehearsal(loaded.module, *views, kernel=Kernel.parse("gaussian:7"))
        train(
            rehearsal,
            steps=int(options["steps"]),
            every=int(options["every"]),
            rate=options["lr"],
            seed=int(options["seed"]),
        )
    told = {"finished with": json.dumps({**options, "guide": guide.name, "start": start.name}, sort_keys=True)}
    module = rehearsal.ema.module
    save_generator(module.half(), output, spec=module.spec, metadata={**loaded.metadata, **told})


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("guide", type=click.Path(path_type=Path))
@click.option("--start", type=click.Path(path_type=Path), required=True, help="The generator to fine-tune.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="A .safetensors file.")
@click.option("--region", type=RegionType(), help="Part of the slide that trains; all of it if left out.")
@click.option("--steps", type=click.IntRange(1), default=1200, show_default=True)
@click.option("--every", type=click.IntRange(1), default=260, show_default=True, help="Steps between two tables.")
@click.option("--lr", type=float, default=3e-4, show_default=True, help="Learning rate.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def main(source: Path, guide: Path, start: Path, output: Path, region: Box | None, **options: float) -> None:
    """Fine-tune a generator on the H&E slide SOURCE and its aligned GUIDE, normalized as KIN does."""
    try:
        finish(source, guide, start, output, region=region, options=options)
    except KinError as error:
        sys.exit(f"error: {error}".replace("\n", " "))


if __name__ == "__main__":
    main()
