"""Measure what the trust score finds, and write the tables of docs/trust.md.

    python benchmarks/trust.py GENERATOR --held SLIDE[@x,y,w,h] --other NAME=SLIDE … [--photographs FOLDER]
        [--map NAME=OUTPUT.trust.geojson …] [--turn FOLDER] [--validated FOLDER] [--keep FOLDER] [--write docs/trust.md]

GENERATOR carries a reference (``kin models learn``). Tables:

finds    for each planted change and other slide the area under the ROC curve of the score against held-out patches,
         that of each group of layers, and how many lie below 1 % and 5 %
rescans  false alarms: held-out patches as other scans would show them
match    the slide of --held with its colours turned on purpose, as it is and matched, all judged as matched; with
         ``--validated`` what ``kin validate --json`` says of translations of them (FOLDER/TURN+METHOD.ome.tif and
         .json). ``--turn`` only writes the turned slides (FOLDER/TURN.tif)
maps     what trust maps of whole slides flag (--map)

``--keep FOLDER`` keeps the measured statistics, so that another reference of the same weights is judged in seconds.
Between the lines ``<!-- table NAME -->`` and ``<!-- end -->`` of the file of ``--write`` the table is replaced.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image
from scipy.stats import mannwhitneyu

from kin_cli.geometry import Box, Pixels
from kin_cli.models.checkpoint import load_generator
from kin_cli.models.reference import GROUPS, read_reference
from kin_cli.passes.alone import differences
from kin_cli.passes.engine import Engine
from kin_cli.passes.trust import read_map
from kin_cli.slide.open import open_source
from kin_cli.slide.stain import METHODS, MatchedSlide, jittered_stains, match_to
from kin_cli.trust.sample import Sample, sample_patches
from kin_cli.trust.scans import CHANGES, blurred, compressed, rescanned

LIGHT, TISSUE = 243, 215  # grey levels of glass, and below which the darkest channel is tissue
RESCANS = {
    "pixel size": "pixel size ± 5 %",
    "stains": "stains ± 15 %",
    "focus": "focus: blur to 0.6 px, or sharpening",
    "white balance": "white balance ± 2.5 %",
    "gamma": "gamma 0.91 to 1.1",
    "compression": "JPEG 60 to 90",
    "all of these": "all of these at once",
}
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


TOLD = ["r of the stain, 128 µm", "r of nuclei, 128 µm", "ΔE to the untouched's translation"]
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
DYES = np.array([[0.75, 0.62, 0.22], [0.05, 0.93, 0.36], [0.27, 0.57, 0.78]])


def turns() -> dict[str, tuple[str, Any]]:
    """What is done to colours on purpose: a short name, what it is, and the change (3, 3) of optical densities."""
    unit, other = (stains / np.linalg.norm(stains, axis=1, keepdims=True) for stains in (STAINS, DYES))
    inverse = np.linalg.inv(unit)
    return {
        "plain": ("untouched", np.eye(3)),
        "A": ("haematoxylin × 1.35, eosin × 0.6", inverse @ np.diag([1.35, 0.6, 1]) @ unit),
        "B": ("other dyes: the vectors of both stains turned", inverse @ other),
        "C": ("haematoxylin × 0.7, eosin × 1.3", inverse @ np.diag([0.7, 1.3, 1]) @ unit),
    }


@dataclass(frozen=True)
class Turned:
    """Changes colours as ``StainMatch`` does, by a matrix of optical densities."""

    change: Any

    def __call__(self, pixels: Pixels) -> Pixels:
        """Pixels (h, w, 3) in other colours."""
        found = 256 * np.exp(-(-np.log((pixels.astype(np.float32) + 1) / 256) @ self.change)) - 1
        return np.rint(found).clip(0, 255).astype(np.uint8)


def matches(sample: Sample, stains: Any) -> Iterator[tuple[str, str, str, list[Pixels]]]:
    """For every turn as it is and by each method: its name, the method, a remark, and the patches."""
    patches = list(sample.patches())
    for name, (_, change) in turns().items():
        turn = Turned(change)
        shown = patches if name == "plain" else [turn(patch) for patch in patches]
        view = replace(sample.view, slide=MatchedSlide(sample.view.slide, turn))  # the fit sees the whole slide
        yield name, "", "", shown
        for method in METHODS:
            match = match_to(view, method, stains[method])
            remark = "" if match.needed else "left alone: near" if match.near else "left alone: would not come near"
            yield name, method, remark, [match(patch) for patch in shown]


def write_turned(slide: Path, folder: Path) -> None:
    """The whole slide in every other colour, lossless, for ``kin translate``."""
    view = open_source(slide)
    for name, (_, change) in turns().items():
        shown = replace(view, slide=MatchedSlide(view.slide, Turned(change)))
        pixels = np.empty((view.size.height, view.size.width, 3), np.uint8)
        for y in range(0, view.size.height, 512):
            strip = Box(0, y, view.size.width, min(512, view.size.height - y))
            pixels[y : y + strip.height] = shown.read(strip)
        folder.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / f"{name}.tif", pixels, photometric="rgb", tile=(512, 512), compression="deflate")


class Tables:
    """The rows of each table; printed as they come."""

    def __init__(self) -> None:
        self.rows: dict[str, list[str]] = {}

    def add(self, table: str, *cells: str) -> None:
        """A row; the first is the head."""
        rows = self.rows.setdefault(table, [])
        rows.append("| " + " | ".join(cells) + " |")
        if len(rows) == 1:
            rows.append("|" + "---|" * len(cells))
        print("\n".join(rows[-2:] if len(rows) == 2 else rows[-1:]), flush=True)

    def write(self, file: Path) -> None:
        """Put the tables in the places that the file has for them."""
        text = file.read_text(encoding="utf-8")
        for name, rows in self.rows.items():
            start, end = f"<!-- table {name} -->\n", "<!-- end -->"
            before, found, after = text.partition(start)
            if not found:
                raise SystemExit(f"{file} has no place for the table {name}")
            text = before + start + "\n" + "\n".join(rows) + "\n\n" + end + after.partition(end)[2]
        file.write_text(text, encoding="utf-8")


def percent(fraction: float) -> str:
    """A fraction in per cent, with two digits."""
    return f"{100 * fraction:.2g} %" if fraction < 0.995 else "100 %"


def roc(found: Any, normal: Any) -> list[str]:
    """Areas under the ROC curve of the score and of each group."""
    columns = [(found.percentile, normal.percentile)]
    columns += [(found.by_group[:, i], normal.by_group[:, i]) for i in range(found.by_group.shape[1])]
    areas = [mannwhitneyu(-np.log(a), -np.log(b)).statistic / (len(a) * len(b)) for a, b in columns]
    return [f"{area:.3f}" for area in areas]


def flags(percentile: Any) -> list[str]:
    """Shares below 1 % and 5 %, and the median."""
    shares = [f"{100 * (percentile < limit).mean():.0f} %" for limit in (0.01, 0.05)]
    return [*shares, percent(float(np.median(percentile)))]


def validated(folder: Path | None, name: str, method: str) -> list[str]:
    """Against the real stain by ``kin validate --json``, and against the translation of the untouched slide in ΔE.

    Of what was left alone, those of the slide as it is.
    """
    if folder is None:
        return []
    stem = next((one for one in (f"{name}+{method}", name) if (folder / f"{one}.json").exists()), None)
    if stem is None:
        return [""] * len(TOLD)
    scores = json.loads((folder / f"{stem}.json").read_text())["scores"]
    values = {(score["um"], score["name"]): score["value"] for score in scores}
    one, other = (open_source(folder / f"{which}.ome.tif") for which in (stem, "plain"))
    apart = differences(*(view.read(Box(0, 0, view.size.width, view.size.height)) for view in (one, other))).mean()
    found = [values[128, "pearson"], values[128, "nuclei_pearson"]]
    return [*(f"{value:.3f}" for value in found), f"{apart:.2f}"]


class Measured:
    """A generator and its reference; statistics of patches are kept in a folder, if there is one."""

    def __init__(self, file: Path, keep: Path | None) -> None:
        generator = load_generator(file)
        reference = read_reference(file, generator.channels)
        assert reference is not None, "kin models learn first"
        self.reference, self.keep = reference, keep
        self.engine = Engine(generator, device=torch.device("cpu"), precision="fp32")

    def scores(self, name: str, make: Callable[[], list[Pixels]], *, matched: bool = False) -> Any:
        """The scores of the patches that ``make`` gives, unless they are kept under this name."""
        file = None if self.keep is None else self.keep / f"{name.replace('/', '_')}.npy"
        if file is not None and file.exists():
            return self.reference.scores(np.load(file), matched=matched)
        stats = np.concatenate([self.engine.measure([np.array(patch, order="C")]) for patch in make()])
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, stats)
        return self.reference.scores(stats, matched=matched)


def finds(tables: Tables, known: Measured, held: list[Pixels], given: argparse.Namespace) -> None:
    """The table of planted changes and other slides."""
    card = known.reference.card
    conditions: dict[str, Callable[[], list[Pixels]]] = {"held out": lambda: held}
    conditions |= {name: (lambda f=f: [f(p) for p in held]) for name, f in planted().items()}
    for low, high in FOLDS:
        conditions[f"fold, {100 * low:.0f} to {100 * high:.0f} %"] = lambda s=(low, high): folded(held, s)
    for entry in given.other:
        name, _, text = entry.partition("=")
        conditions[name] = lambda t=text: list(sample_of(t, given.count, card.patch_px, card.min_tissue).patches())
    if given.photographs:
        conditions["photographs"] = lambda: photographs(given.photographs, card.patch_px)
    tables.add("finds", "patches", "n", "ROC", *GROUPS, "below 1 %", "below 5 %", "median percentile")
    normal = known.scores("held out", lambda: held)
    for name, make in conditions.items():
        found = known.scores(name, make)
        tables.add("finds", name, str(len(found.percentile)), *roc(found, normal), *flags(found.percentile))


def false_alarms(tables: Tables, known: Measured, sample: Sample) -> None:
    """The table of other scans."""
    tables.add("rescans", "scanned again with other", "below 1 %", "below 5 %", "median percentile")
    for name, text in RESCANS.items():
        changes = tuple(CHANGES) if name == "all of these" else (name,)
        found = known.scores(f"rescan: {name}", lambda c=changes: rescans(sample, c))
        tables.add("rescans", text, *flags(found.percentile))


def colours(tables: Tables, known: Measured, sample: Sample, folder: Path | None) -> None:
    """The table of colours that were turned on purpose."""
    told = [] if folder is None else TOLD
    tables.add("match", "colours", "`--stain-match`", *told, "median percentile", *GROUPS)
    for name, method, remark, patches in matches(sample, known.reference.card.stains):
        found = known.scores(f"turned {name} {'' if remark else method}", lambda p=patches: p, matched=True)
        middle = [percent(float(x)) for x in (np.median(found.percentile), *np.median(found.by_group, axis=0))]
        how = f"{method}: {remark}" if remark else method or "no"
        tables.add("match", turns()[name][0], how, *validated(folder, name, method), *middle)


def maps(tables: Tables, entries: list[str]) -> None:
    """The table of trust maps."""
    names = [f"below 5 %, by {name}" for name in GROUPS]
    tables.add("maps", "slide", "patches judged", "median percentile", "below 1 %", "below 5 %", *names)
    for entry in entries:
        name, _, text = entry.partition("=")
        shown = read_map(Path(text))
        assert shown is not None, text
        group = shown.group[shown.judged & (np.nan_to_num(shown.percentile, nan=1) < 0.05)]
        low, five, middle = flags(shown.percentile[shown.judged])
        counts = [str(int((group == number).sum())) for number in range(len(GROUPS))]
        tables.add("maps", name, str(int(shown.judged.sum())), middle, low, five, *counts)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generator", type=Path)
    parser.add_argument("--held", required=True, help="patches like those of the training, SLIDE@x,y,w,h")
    parser.add_argument("--other", action="append", default=[], help="NAME=SLIDE[@x,y,w,h]")
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--map", action="append", default=[], help="NAME=OUTPUT.trust.geojson")
    parser.add_argument("--turn", type=Path)
    parser.add_argument("--validated", type=Path)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.turn:
        write_turned(Path(given.held.partition("@")[0]), given.turn)
        return
    known, tables = Measured(given.generator, given.keep), Tables()
    card = known.reference.card
    sample = sample_of(given.held, given.count, card.patch_px, card.min_tissue)
    finds(tables, known, list(sample.patches()), given)
    false_alarms(tables, known, sample)
    colours(tables, known, sample, given.validated)
    if given.map:
        maps(tables, given.map)
    if given.write:
        tables.write(given.write)


if __name__ == "__main__":
    main()
