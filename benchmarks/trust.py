"""Measure what the trust score finds: held-out patches, the same with planted changes or scanned again, other slides.

    python benchmarks/trust.py GENERATOR --held SLIDE[@x,y,w,h] --other NAME=SLIDE … [--photographs FOLDER]

GENERATOR carries a reference (``kin models learn``). For each condition the table shows the area under the ROC curve
of the score against held-out patches, that of each group of layers, and the fraction below 1 %. ``--keep FOLDER`` keeps
the measured statistics, so that another reference of the same weights is judged in seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import mannwhitneyu

from kin_cli.geometry import Box, Pixels
from kin_cli.models.checkpoint import load_generator
from kin_cli.models.reference import GROUPS, read_reference
from kin_cli.passes.engine import Engine
from kin_cli.slide.open import open_source
from kin_cli.slide.stain import jittered_stains
from kin_cli.trust.sample import Sample, sample_patches
from kin_cli.trust.scans import CHANGES, blurred, compressed, rescanned

LIGHT, TISSUE = 243, 215  # grey levels of glass, and below which the darkest channel is tissue
FOLDS = ((0.05, 0.15), (0.2, 0.4))  # fractions of a patch that lie under two layers


def saturation(patch: Pixels, factor: float) -> Pixels:
    """The distance of each pixel from its grey, times a factor."""
    grey = patch.mean(axis=2, keepdims=True)
    return np.rint(grey + factor * (patch - grey)).clip(0, 255).astype(np.uint8)


def hue(patch: Pixels, degrees: float) -> Pixels:
    """The hue of each pixel turned."""
    turned = np.asarray(Image.fromarray(patch).convert("HSV")).copy()
    turned[..., 0] = (turned[..., 0].astype(int) + round(256 * degrees / 360)) % 256
    return np.asarray(Image.fromarray(turned, "HSV").convert("RGB"))


def magnified(patch: Pixels, factor: int) -> Pixels:
    """The middle of the patch, enlarged to the whole."""
    side = len(patch)
    start, part = (side - side // factor) // 2, side // factor
    middle = Image.fromarray(patch[start : start + part, start : start + part])
    return np.asarray(middle.resize((side, side), Image.Resampling.BICUBIC))


def pen(patch: Pixels, rng: np.random.Generator) -> Pixels:
    """A stroke of a marker pen through the middle, in one of four colours."""
    side = len(patch)
    colour = np.array([(20, 90, 60), (25, 30, 120), (30, 30, 30), (150, 20, 40)][rng.integers(4)])
    rows, cols = np.mgrid[:side, :side] - side / 2
    angle = rng.uniform(0, np.pi)
    stroke = np.abs(cols * np.cos(angle) + rows * np.sin(angle)) < side * rng.uniform(0.1, 0.25)
    changed = patch.astype(np.float32)
    changed[stroke] = 0.75 * colour + 0.25 * changed[stroke]
    return np.rint(changed).astype(np.uint8)


def density(patch: Pixels) -> Any:
    """Natural optical density (H, W, 3), 0 on glass."""
    return np.clip(-np.log((patch.astype(np.float32) + 1) / (LIGHT + 1)), 0, None)


def fold(patch: Pixels, other: Pixels, rng: np.random.Generator, shares: tuple[float, float]) -> Pixels | None:
    """A band in which other tissue lies on the patch's own, so that both take their share of the light.

    The band is drawn until tissue on tissue covers a fraction of the patch within ``shares``; None if it never does.
    """
    side, upper = len(patch), other[:, ::-1]
    both = (patch.min(axis=2) < TISSUE) & (upper.min(axis=2) < TISSUE)
    rows, cols = np.mgrid[:side, :side] - (side - 1) / 2
    for _ in range(60):
        angle = rng.uniform(0, np.pi)
        width, offset = side * rng.uniform(0.1, 0.6), side * rng.uniform(-0.3, 0.3)
        along = rows * np.cos(angle) - cols * np.sin(angle)
        across = cols * np.cos(angle) + rows * np.sin(angle) - offset
        wave = 0.03 * side * np.sin(2 * np.pi * along / side * rng.uniform(1, 2) + rng.uniform(0, 6))
        inside = np.clip(width / 2 - np.abs(across + wave) + 0.5, 0, 1)
        if shares[0] <= (both & (inside > 0.5)).mean() <= shares[1]:
            return np.rint(patch * np.exp(-inside[..., None] * density(upper))).clip(0, 255).astype(np.uint8)
    return None


def folded(patches: list[Pixels], shares: tuple[float, float]) -> list[Pixels]:
    """Each patch with a fold of tissue from another one that has much of it; patches with too little are left out."""
    tissue = [(patch.min(axis=2) < TISSUE).mean() for patch in patches]
    rich = [patch for patch, part in zip(patches, tissue, strict=True) if part >= np.median(tissue)]
    found = []
    for number, patch in enumerate(patches):
        rng = np.random.default_rng([77, number])
        others = [rich[(7 * number + 3 + i) % len(rich)] for i in range(len(rich))]
        made = (fold(patch, other, rng, shares) for other in others if other is not patch)
        found += [next((one for one in made if one is not None), None)]
    return [one for one in found if one is not None]


def rescans(sample: Sample, changes: Sequence[str]) -> list[Pixels]:
    """Each patch as other scans would show it, after all of the ``changes`` in turn."""
    found = []
    for number, box in enumerate(sample.boxes):
        rng, read = np.random.default_rng([77, number]), sample.view.read
        for change in changes:
            pixels = rescanned(read, box, change, rng)
            read = lambda _, pixels=pixels: pixels  # noqa: E731
        found.append(pixels)
    return found


def planted() -> dict[str, Callable[[Pixels], Pixels]]:
    """The changes, by name."""
    rng = np.random.default_rng(7)
    return {
        "stains ±5 %": lambda p: jittered_stains(p, rng, amount=0.05),
        "stains ±10 %": lambda p: jittered_stains(p, rng, amount=0.1),
        "half saturation": lambda p: saturation(p, 0.5),
        "saturation × 1.5": lambda p: saturation(p, 1.5),
        "hue + 20°": lambda p: hue(p, 20),
        "hue - 20°": lambda p: hue(p, -20),
        "JPEG 20": lambda p: compressed(p, 20),
        "JPEG 50": lambda p: compressed(p, 50),
        "darker by 10 %": lambda p: np.rint(0.9 * p).astype(np.uint8),
        "blur 0.7 px": lambda p: blurred(p, 0.7),
        "blur 1.5 px": lambda p: blurred(p, 1.5),
        "blur 3 px": lambda p: blurred(p, 3.0),
        "magnified × 2": lambda p: magnified(p, 2),
        "pen mark": lambda p: pen(p, rng),
    }


def sample_of(text: str, count: int, side: int, least: float) -> Sample:
    """Patches of ``SLIDE`` or ``SLIDE@x,y,w,h``, which stays open."""
    name, _, region = text.partition("@")
    view = open_source(Path(name), region=Box(*map(int, region.split(","))) if region else None)
    return sample_patches(view, count=count, patch_px=side, min_tissue=least)


def photographs(folder: Path, side: int) -> list[Pixels]:
    """The corners of every picture in a folder that is large enough, or enlarged to be so."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in (".png", ".jpg"):
            continue
        picture = Image.open(path)
        if picture.mode not in ("RGB", "RGBA") or min(picture.size) < 200:
            continue
        factor = max(1, side / min(picture.size))
        size = [max(side, round(length * factor)) for length in picture.size]
        pixels = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC))
        found += [pixels[:side, :side], pixels[-side:, -side:]]
    return found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generator", type=Path)
    parser.add_argument("--held", required=True, help="patches like those of the training, SLIDE@x,y,w,h")
    parser.add_argument("--other", action="append", default=[], help="NAME=SLIDE[@x,y,w,h]")
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    generator = load_generator(given.generator)
    reference = read_reference(given.generator, generator.channels)
    assert reference is not None, "kin models learn first"
    engine = Engine(generator, device=torch.device("cpu"), precision="fp32")
    side, least = reference.card.patch_px, reference.card.min_tissue

    def scored(name: str, make: Callable[[], list[Pixels]]) -> Any:
        file = None if given.keep is None else given.keep / f"{name.replace('/', '_')}.npy"
        if file is not None and file.exists():
            return reference.scores(np.load(file))
        stats = np.concatenate([engine.measure([np.array(patch, order="C")]) for patch in make()])
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, stats)
        return reference.scores(stats)

    sample = sample_of(given.held, given.count, side, least)
    held = list(sample.patches())
    normal = scored("held out", lambda: held)
    print("| patches | n | ROC | " + " | ".join(GROUPS) + " | below 1 % | below 5 % | median percentile |")
    print("|---|---|---|" + "---|" * (len(GROUPS) + 3))
    conditions = {name: (lambda f=f: [f(p) for p in held]) for name, f in planted().items()}
    conditions |= {
        f"fold, {100 * low:.0f} to {100 * high:.0f} %": lambda s=(low, high): folded(held, s) for low, high in FOLDS
    }
    conditions |= {f"rescan: {name}": lambda c=(name,): rescans(sample, c) for name in CHANGES}
    conditions["rescan: all of these"] = lambda: rescans(sample, CHANGES)
    for entry in given.other:
        name, _, text = entry.partition("=")
        conditions[name] = lambda text=text: list(sample_of(text, given.count, side, least).patches())
    if given.photographs:
        conditions["photographs"] = lambda: photographs(given.photographs, side)
    _row("held out", normal, normal)
    for name, make in conditions.items():
        _row(name, scored(name, make), normal)


def _row(name: str, found: Any, normal: Any) -> None:
    columns = [(found.percentile, normal.percentile)]
    columns += [(found.by_group[:, i], normal.by_group[:, i]) for i in range(found.by_group.shape[1])]
    areas = [mannwhitneyu(-np.log(a), -np.log(b)).statistic / (len(a) * len(b)) for a, b in columns]
    shares = [f"{100 * (found.percentile < limit).mean():.0f} %" for limit in (0.01, 0.05)]
    cells = [name, str(len(found.percentile)), *(f"{area:.3f}" for area in areas), *shares]
    print("| " + " | ".join(cells) + f" | {100 * np.median(found.percentile):.2g} % |", flush=True)


if __name__ == "__main__":
    main()
