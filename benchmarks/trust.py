"""Measure what the trust score finds: patches held out from the training, the same with planted changes, other slides.

    python benchmarks/trust.py GENERATOR --held SLIDE[@x,y,w,h] --other NAME=SLIDE … [--photographs FOLDER]

GENERATOR carries a reference (``kin models learn``). For each condition the table shows the area under the ROC curve
of the score against held-out patches, that of each group of layers, and the fraction below 1 %. ``--keep FOLDER`` keeps
the measured statistics, so that another reference of the same weights is judged in seconds.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.stats import mannwhitneyu

from kin_cli.geometry import Box, Pixels
from kin_cli.models.checkpoint import load_generator
from kin_cli.models.reference import GROUPS, read_reference
from kin_cli.passes.engine import Engine
from kin_cli.slide.open import open_source
from kin_cli.slide.stain import jittered_stains
from kin_cli.trust.sample import sample_patches


def saturation(patch: Pixels, factor: float) -> Pixels:
    """The distance of each pixel from its grey, times a factor."""
    grey = patch.mean(axis=2, keepdims=True)
    return np.rint(grey + factor * (patch - grey)).clip(0, 255).astype(np.uint8)


def hue(patch: Pixels, degrees: float) -> Pixels:
    """The hue of each pixel turned."""
    turned = np.asarray(Image.fromarray(patch).convert("HSV")).copy()
    turned[..., 0] = (turned[..., 0].astype(int) + round(256 * degrees / 360)) % 256
    return np.asarray(Image.fromarray(turned, "HSV").convert("RGB"))


def jpeg(patch: Pixels, quality: int) -> Pixels:
    """Compressed and decompressed."""
    encoded = io.BytesIO()
    Image.fromarray(patch).save(encoded, "JPEG", quality=quality)
    return np.asarray(Image.open(encoded).convert("RGB"))


def blur(patch: Pixels, sigma: float) -> Pixels:
    """Gaussian blur."""
    return np.rint(ndimage.gaussian_filter(patch.astype(np.float32), (sigma, sigma, 0))).astype(np.uint8)


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


def fold(patch: Pixels, rng: np.random.Generator) -> Pixels:
    """A strip of tissue folded over: its density added to that of its neighbour, mirrored."""
    side = len(patch)
    width = round(side * rng.uniform(0.15, 0.3))
    start = int(rng.integers(width, side - 2 * width))
    density = -np.log((patch.astype(np.float32) + 1) / 256)
    density[:, start : start + width] += density[:, start - width : start][:, ::-1]
    folded = np.rint(256 * np.exp(-density) - 1).clip(0, 255).astype(np.uint8)
    return folded if rng.random() < 0.5 else np.rot90(folded)


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
        "JPEG 20": lambda p: jpeg(p, 20),
        "JPEG 50": lambda p: jpeg(p, 50),
        "darker by 10 %": lambda p: np.rint(0.9 * p).astype(np.uint8),
        "blur 0.7 px": lambda p: blur(p, 0.7),
        "blur 1.5 px": lambda p: blur(p, 1.5),
        "blur 3 px": lambda p: blur(p, 3.0),
        "magnified × 2": lambda p: magnified(p, 2),
        "pen mark": lambda p: pen(p, rng),
        "fold": lambda p: fold(p, rng),
    }


def patches_of(text: str, count: int, side: int, least: float) -> list[Pixels]:
    """Patches of ``SLIDE`` or ``SLIDE@x,y,w,h``."""
    name, _, region = text.partition("@")
    view = open_source(Path(name), region=Box(*map(int, region.split(","))) if region else None)
    with view.slide:
        return list(sample_patches(view, count=count, patch_px=side, min_tissue=least).patches())


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

    held = patches_of(given.held, given.count, side, least)
    normal = scored("held out", lambda: held)
    print("| patches | n | ROC | " + " | ".join(GROUPS) + " | below 1 % | below 5 % | median percentile |")
    print("|---|---|---|" + "---|" * (len(GROUPS) + 3))
    conditions = {name: (lambda f=f: [f(p) for p in held]) for name, f in planted().items()}
    for entry in given.other:
        name, _, text = entry.partition("=")
        conditions[name] = lambda text=text: patches_of(text, given.count, side, least)
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
