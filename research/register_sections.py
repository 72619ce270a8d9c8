"""Register a serial section in another stain to an H&E slide, piece by piece.

    python research/register_sections.py he.tif ihc.tif -o guide.tif

The guide has the size and scale of the H&E slide and shows the other section where each piece of its tissue lies.
Neighbouring sections are no pixel-exact pairs: they agree to some tens of µm.
``brown_in_place.py`` and ``predict_guide.py`` read the guide; ``kin train cut --guide`` was removed (see README.md).

Pieces (components of tissue, split at their necks) are located in the other slide by normalized correlation of their
outline and nuclear density: the largest at any rotation, the others within 35° of it. Each is then registered by a
rotation, an affine map and a smooth displacement that maximise the local correlation, from coarse to fine. Pixels of no
piece, or of one with a correlation below 0.3 (1 is best), are black: unknown. Both slides must state their resolution,
and the sections must not be mirrored. Look at the guide before using it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pyvips
import torch
from dab import DAB, EOSIN, HAEMATOXYLIN
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from kin_cli.errors import InputError, KinError
from kin_cli.geometry import Box
from kin_cli.pyramid.writer import part_file
from kin_cli.slide.open import open_slide
from kin_cli.slide.view import open_view

Floats = npt.NDArray[np.float64]

_SEARCH_UM = 32.0
_FIT_UM = (16.0, 8.0)
_STEPS = (150, 200)
_KNOTS_UM = (500.0, 300.0)
_WINDOWS_UM = ((120.0, 1.0), (400.0, 0.5))  # of the local correlation, and their weights
_DEGREES = 5
_TWIST = 35  # how far in degrees the rotation of a piece may be from that of the largest
_LEAST = 0.3  # local correlation below which a piece counts as not found
_SMALLEST_MM2 = 0.3  # smaller ones find likeness anywhere
_AROUND_UM = 150.0  # of background around a piece that the guide keeps


@dataclass(frozen=True)
class Section:
    """A slide at ``um`` µm per pixel: tissue and haematoxylin as (2, h, w) float32, each from 0 to about 1."""

    um: float
    features: Tensor

    @property
    def tissue(self) -> npt.NDArray[np.bool_]:
        """(h, w): denser than half of what saturates the feature, without specks."""
        found: npt.NDArray[np.bool_] = ndimage.binary_opening(self.features[0].numpy() > 0.5, iterations=2)
        return found


def read_section(path: Path, um: float, *, second: tuple[float, ...]) -> Section:
    """A whole slide at ``um``; ``second`` is the dye beside haematoxylin."""
    with open_slide(path) as slide:
        if slide.mpp is None:
            raise InputError(f"{path}: does not say its resolution", "registration needs the µm per pixel of both")
        view = open_view(slide, mpp=um)
        pixels = view.read(Box(0, 0, view.size.width, view.size.height))
    background = np.percentile(pixels.reshape(-1, 3), 90, axis=0)
    density = np.maximum(-np.log(np.clip(pixels, 5.0, 255.0) / background), 0.0)
    stains = np.array([HAEMATOXYLIN, second, np.cross(HAEMATOXYLIN, second)])
    unmixed = density @ np.linalg.inv(stains / np.linalg.norm(stains, axis=1, keepdims=True))
    total = density.sum(axis=-1)
    full = np.percentile(total[total > 0.1], 30) if (total > 0.1).any() else 1.0  # a thin counterstain's, or eosin's
    layers = [
        ndimage.gaussian_filter(np.minimum(total / full, 1.0), 0.7),
        ndimage.gaussian_filter(unmixed[..., 0].clip(0.0, 1.2), 0.7),
    ]
    return Section(um, torch.from_numpy(np.stack(layers)).float())


def pieces_of(section: Section) -> npt.NDArray[np.int32]:
    """Labels (h, w) from 1 of the pieces of tissue, 0 elsewhere; pieces that touch are parted at their necks."""
    tissue = section.tissue
    cores, count = ndimage.label(ndimage.binary_erosion(tissue, iterations=round(96 / section.um)))
    nearest = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
    labels = np.where(tissue, cores[tuple(nearest)], 0)
    areas = ndimage.sum(tissue, labels, range(1, count + 1)) * (section.um / 1000.0) ** 2
    kept = [number + 1 for number in np.argsort(-areas) if areas[number] >= _SMALLEST_MM2]
    renumbered: npt.NDArray[np.int32] = np.zeros(count + 1, np.int32)
    renumbered[kept] = np.arange(1, len(kept) + 1)
    return renumbered[labels]


@dataclass
class Motion:
    """Where points of the H&E slide lie in the other: x ↦ R(angle) · (1 + skew) · (x - centre) + place + bend(x); µm.

    ``bend`` is a displacement on knots over ``frame`` (x, y, right, bottom), (2, rows, cols), interpolated bicubically.
    """

    angle: Tensor
    centre: Tensor
    place: Tensor
    skew: Tensor
    bend: Tensor
    frame: tuple[float, float, float, float]

    def __call__(self, points: Tensor) -> Tensor:
        """Points (h, w, 2), x first, to the same."""
        cos, sin = self.angle.cos(), self.angle.sin()
        turn = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
        linear = turn @ (torch.eye(2) + self.skew)
        x, y, right, bottom = self.frame
        unit = (points - torch.tensor([x, y])) / torch.tensor([right - x, bottom - y]) * 2.0 - 1.0
        bent = F.grid_sample(self.bend[None], unit[None], mode="bicubic", padding_mode="border", align_corners=True)
        return (points - self.centre) @ linear.T + self.place + bent[0].permute(1, 2, 0)

    def refined(self, knots_um: float) -> Motion:
        """The same with a finer net of knots, every part of it free to change."""
        x, y, right, bottom = self.frame
        size = [max(3, round(extent / knots_um) + 1) for extent in (bottom - y, right - x)]
        bend = F.interpolate(self.bend[None], size=size, mode="bicubic", align_corners=True)[0]
        free = [part.detach().clone().requires_grad_(True) for part in (self.angle, self.place, self.skew, bend)]
        return Motion(free[0], self.centre, free[1], free[2], free[3], self.frame)


def centres(height: int, width: int, um: float, *, x: float = 0.0, y: float = 0.0) -> Tensor:
    """Centres of pixels, (height, width, 2) µm from the slide's corner, x first."""
    rows, cols = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([cols * um + x, rows * um + y], dim=-1)


def sampled(section: Section, points: Tensor) -> Tensor:
    """Features (2, h, w) at points (h, w, 2) in µm; 0 beyond the slide."""
    height, width = section.features.shape[1:]
    unit = points / section.um / torch.tensor([width, height]) * 2.0 - 1.0
    return F.grid_sample(section.features[None], unit[None], align_corners=False)[0]


def found(source: Section, target: Section, piece: Tensor, angles: Iterable[int]) -> Motion:
    """The rotation (of ``angles``, degrees) and place at which a piece (h, w) bool correlates best with the target."""
    um = source.um
    rows, cols = torch.nonzero(piece, as_tuple=True)
    frame = [float(v) * um for v in (cols.min() - 8, rows.min() - 8, cols.max() + 9, rows.max() + 9)]
    centre = torch.tensor([(frame[0] + frame[2]) / 2, (frame[1] + frame[3]) / 2])
    radius = math.hypot(frame[2] - frame[0], frame[3] - frame[1]) / 2
    side = 2 * math.ceil(radius / um)
    features = torch.cat([source.features * piece, near(piece, 5)[None].float()])
    spectrum = Spectrum(target.features, side)
    best = (-1.0, 0.0, torch.zeros(2))
    for degrees in angles:
        angle = torch.tensor(math.radians(degrees))
        back = torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
        points = (centres(side, side, um) - side * um / 2) @ back.T + centre
        turned = sampled(Section(um, features), points)
        value, corner = spectrum.peak(turned[:2], turned[2] > 0.5)
        if value > best[0]:
            best = (value, float(angle), corner * um + side * um / 2)
    bend = torch.zeros(2, 3, 3)
    return Motion(torch.tensor(best[1]), centre, best[2], torch.zeros(2, 2), bend, tuple(frame))  # type: ignore[arg-type]


def near(piece: Tensor, pixels: int) -> Tensor:
    """The piece grown by some pixels."""
    return torch.from_numpy(ndimage.binary_dilation(piece.numpy(), iterations=pixels))


class Spectrum:
    """A target (2, H, W), ready to be correlated with templates of side ``side``, also partly beyond its edges."""

    def __init__(self, target: Tensor, side: int) -> None:
        self._pad = side // 2
        padded = F.pad(target, (self._pad,) * 4)
        self._shape = (padded.shape[1] + side, padded.shape[2] + side)
        self._first, self._second = (torch.fft.rfft2(t, s=self._shape) for t in (padded, padded**2))
        self._valid = (padded.shape[1] - side, padded.shape[2] - side)

    def peak(self, template: Tensor, mask: Tensor) -> tuple[float, Tensor]:
        """The highest normalized correlation within a mask, mean over both features, and its corner (x, y)."""
        count = mask.sum()
        mean = (template * mask).sum((1, 2), keepdim=True) / count
        centred = (template - mean) * mask
        over_mask = torch.fft.rfft2(mask.float(), s=self._shape).conj()
        total, squares = (torch.fft.irfft2(t * over_mask, s=self._shape) for t in (self._first, self._second))
        shared = torch.fft.irfft2(self._first * torch.fft.rfft2(centred, s=self._shape).conj(), s=self._shape)
        variance = (squares - total**2 / count).clamp(min=1e-3 * float(count))
        scores = (shared / (variance * centred.pow(2).sum((1, 2), keepdim=True)).sqrt()).mean(0)
        scores = scores[: self._valid[0], : self._valid[1]]
        row, col = divmod(int(scores.argmax()), scores.shape[1])
        return float(scores.max()), torch.tensor([col - self._pad, row - self._pad]).float()


def local_correlation(one: Tensor, other: Tensor, mask: Tensor, reach: int) -> Tensor:
    """Mean over the mask (h, w) of the correlation of two (c, h, w) in windows of side 2 · ``reach`` + 1; a scalar."""

    def window(values: Tensor) -> Tensor:
        sums = F.pad(values, (reach + 1, reach, reach + 1, reach)).double().cumsum(-1).cumsum(-2)
        side = 2 * reach + 1
        box = sums[..., side:, side:] - sums[..., :-side, side:] - sums[..., side:, :-side] + sums[..., :-side, :-side]
        return box.float() / side**2

    fraction = window(mask[None]).clamp(min=1e-3)
    mean, other_mean, square, other_square, product = (
        window(values * mask) / fraction for values in (one, other, one * one, other * other, one * other)
    )
    spread = (square - mean**2).clamp(min=0) + 1e-3
    other_spread = (other_square - other_mean**2).clamp(min=0) + 1e-3
    values = (product - mean * other_mean) / (spread * other_spread).sqrt()
    return (values * mask).sum() / mask.sum() / len(one)


def fitted(motion: Motion, source: Section, target: Section, piece: Tensor, *, level: int) -> tuple[Motion, float]:
    """The motion improved at one resolution, and the weighted mean of its local correlations."""
    um = source.um
    x, y, right, bottom = (round(v / um) for v in motion.frame)
    top, left = max(0, y), max(0, x)
    mask = piece[top:bottom, left:right].float()
    features = source.features[:, top:bottom, left:right]
    points = centres(*mask.shape, um, x=left * um, y=top * um)
    motion = motion.refined(_KNOTS_UM[level])
    rates = ((motion.angle, 0.003), (motion.place, 4.0), (motion.skew, 0.002), (motion.bend, 4.0 - level))
    optimizer = torch.optim.Adam([{"params": [part], "lr": rate} for part, rate in rates])
    likeness = torch.zeros(())
    for step in range(_STEPS[level]):
        optimizer.zero_grad()
        moved = sampled(target, motion(points))
        likeness = torch.stack(
            [w * local_correlation(features, moved, mask, round(side / um)) for side, w in _WINDOWS_UM]
        ).sum() / sum(w for _, w in _WINDOWS_UM)
        slope = motion.bend.diff(dim=1).pow(2).mean() + motion.bend.diff(dim=2).pow(2).mean()
        (-likeness + slope / 170.0**2 + motion.skew.pow(2).sum()).backward()  # type: ignore[no-untyped-call]
        if level == 0 and step < _STEPS[0] // 3:
            motion.bend.grad = None  # rigid first
        optimizer.step()
    return motion, float(likeness.detach())


def motions(source: dict[float, Section], target: dict[float, Section], labels: npt.NDArray[np.int32]) -> list[Motion]:
    """The motion of every piece from the largest on; a piece that is not found has the label 0 afterwards."""
    angles: Iterable[int] = range(0, 360, _DEGREES)
    moved: list[Motion] = []
    for number in range(1, int(labels.max()) + 1):
        piece = torch.from_numpy(labels == number)
        motion = found(source[_SEARCH_UM], target[_SEARCH_UM], as_in(source[_SEARCH_UM], piece), angles)
        likeness = 0.0
        for level, um in enumerate(_FIT_UM):
            grown = as_in(source[um], near(piece, 3))
            motion, likeness = fitted(motion, source[um], target[um], grown, level=level)
        degrees, area = math.degrees(float(motion.angle.detach())), float(piece.sum()) * (_FIT_UM[0] / 1000.0) ** 2
        kept = likeness >= _LEAST
        fate = "" if kept else ": left out"
        print(f"piece {number}: {area:.2f} mm², {degrees:.0f}°, correlation {likeness:.2f}{fate}", flush=True)
        if number == 1:
            angles = range(round(degrees) - _TWIST, round(degrees) + _TWIST + 1, _DEGREES)
        if not kept:
            labels[labels == number] = 0
        moved.append(motion)
    return moved


def as_in(section: Section, mask: Tensor) -> Tensor:
    """A mask (h, w) of the whole slide in another resolution."""
    size = section.features.shape[1:]
    return F.interpolate(mask[None, None].float(), size=size, mode="bilinear", antialias=True)[0, 0] > 0.5


@torch.no_grad()
def write_guide(paths: tuple[Path, Path, Path], labels: npt.NDArray[np.int32], moved: list[Motion]) -> None:
    """Resample the target (second path) to the frame of the source (first) and write it (third) as a pyramid."""
    source, target, output = paths
    with open_slide(source) as slide, open_slide(target) as other:
        size, mpp, target_mpp = slide.levels[0], slide.mpp or 0.0, other.mpp or 1.0
        view = open_view(other)
        pixels = view.read(Box(0, 0, view.size.width, view.size.height))
    far, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    owner = labels[tuple(nearest)]
    inner = ndimage.minimum_filter(owner, 3) == ndimage.maximum_filter(owner, 3)  # between pieces places are mixtures
    known = inner & (far * _FIT_UM[0] <= _AROUND_UM)
    points = centres(*labels.shape, _FIT_UM[0])
    places = torch.zeros_like(points)
    for number, motion in enumerate(moved, start=1):
        own = torch.from_numpy(owner == number)
        places[own] = motion(points)[own]
    index = pyvips.Image.new_from_array((places / target_mpp - 0.5).numpy())
    scale = size.width / labels.shape[1], size.height / labels.shape[0]
    wanted = {"kernel": "linear", "vscale": scale[1]}
    image = pyvips.Image.new_from_array(pixels).mapim(index.resize(scale[0], **wanted), interpolate=bicubic())
    mask = pyvips.Image.new_from_array(known.astype(np.uint8) * 255).resize(scale[0], kernel="nearest", vscale=scale[1])
    guide = mask.ifthenelse(image.maxpair(1), 0).crop(0, 0, size.width, size.height).copy(interpretation="srgb")
    resolution = 1000.0 / mpp
    guide.tiffsave(
        str(output), tile=True, pyramid=True, compression="jpeg", Q=90, xres=resolution, yres=resolution, bigtiff=True
    )


def bicubic() -> Any:
    """Catmull and Rom's interpolation."""
    return pyvips.Interpolate.new("bicubic")


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The guide, a pyramidal TIFF.")
def main(source: Path, target: Path, output: Path) -> None:
    """Bring TARGET, a serial section in a DAB stain, onto the H&E slide SOURCE."""
    try:
        sections = {um: read_section(source, um, second=EOSIN) for um in (_SEARCH_UM, *_FIT_UM)}
        others = {um: read_section(target, um, second=DAB) for um in (_SEARCH_UM, *_FIT_UM)}
        labels = pieces_of(sections[_FIT_UM[0]])
        moved = motions(sections, others, labels)
        if not labels.any():
            raise InputError(
                f"{target}: no piece of {source} is found in it", "are they serial sections, not mirrored?"
            )
        with part_file(output.parent, output, 0) as part:
            write_guide((source, target, part), labels, moved)
    except (KinError, pyvips.Error) as error:
        sys.exit(f"error: {error}".strip().replace("\n", " "))


if __name__ == "__main__":
    main()
