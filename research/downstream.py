"""The downstream check (supplement 0.2 of the KIN paper): a classifier of real target patches on translated ones.

    python research/downstream.py --source he.tif --target ihc.tif -m generator.safetensors
    python research/downstream.py --source he.tif --source-mask tumour_he.geojson --target ihc.tif \\
        --target-mask tumour_ihc.geojson -m generator.safetensors
    python research/downstream.py --source lung=he1.svs --source colon=he2.svs --target lung=ihc1.svs \\
        --target colon=ihc2.svs -m generator.safetensors

Trains a small classifier on patches of the real target slides, translates the sources with every method, and tests the
classifier on crops around the corners of patches (``across``) and, as a control, on whole patches (``inside``). Labels
are the classes of the slides, masks, or a rule on the amount of DAB; ``crops.py`` says what the scores mean with each.
Prints a table and the agreement between methods; --json keeps all of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from classifier import PatchClassifier
from crops import (
    Crops,
    Labels,
    Limits,
    across_borders,
    agreement,
    as_dict,
    held_out,
    inside_patches,
    labels_of_mask,
    score,
    trained,
    with_tissue,
)

from kin_cli.errors import KinError, UsageError
from kin_cli.evaluation.settings import SlideChoice
from kin_cli.evaluation.tiles import opened
from kin_cli.geometry import Box
from kin_cli.progress import SilentProgress
from kin_cli.settings import ComputeSettings, NormSettings, OutputSettings, Settings, SourceSettings
from kin_cli.slide.mask_file import load_mask
from kin_cli.slide.tissue import tissue_mask
from kin_cli.slide.view import SlideView
from kin_cli.translation import translate

METHODS: dict[str, dict[str, Any]] = {
    "in": {"method": "in"},
    "tin": {"method": "tin"},
    "kin": {"method": "kin"},
    "seamless": {"method": "kin", "halo_px": None, "interpolation": "bilinear"},
}
WHERE = {"across": across_borders, "inside": inside_patches}


@dataclass(frozen=True)
class Labelled:
    """A slide with its class, or with a mask of class 1, or with neither."""

    choice: SlideChoice
    label: int | None = None
    mask: Path | None = None

    def labels(self, view: SlideView, crops: Crops, limits: Limits | None, *, learn: bool = False) -> Labels:
        if self.label is not None:
            return np.full(len(crops.boxes), self.label, np.intp)
        if self.mask is not None:
            return labels_of_mask(crops.boxes, load_mask(self.mask, view))
        assert limits is not None
        return limits.to_learn(crops.brown) if learn else limits.to_test(crops.brown)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", action="append", required=True, help="[CLASS=]SLIDE to translate")
    parser.add_argument("--target", action="append", required=True, help="[CLASS=]SLIDE, real, of the target stain")
    parser.add_argument("--source-mask", type=Path, help="mask of class 1 on the source: PNG or GeoJSON")
    parser.add_argument("--target-mask", type=Path, help="mask of class 1 on the target")
    parser.add_argument("--source-region", help="x,y,w,h of every source, such as what training has not seen")
    parser.add_argument("--target-region", help="x,y,w,h of every target")
    parser.add_argument("-m", "--model", type=Path, help="generator (default: the bundled one)")
    parser.add_argument("--methods", default=",".join(METHODS), help="default: %(default)s")
    parser.add_argument("--patch-size", type=int, default=512)
    parser.add_argument("--mpp", type=float, help="compare at this many µm per pixel")
    parser.add_argument("--epochs", type=int, default=20, help="of the classifier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-j", "--workers", type=int, default=2)
    parser.add_argument(
        "--work",
        type=Path,
        help="keeps the translations (default: a temporary folder)",
    )
    parser.add_argument("--json", type=Path, help="write all scores to this file")
    return parser.parse_args()


def slides(named: list[str], classes: list[str], options: argparse.Namespace, stain: str) -> list[Labelled]:
    region, mask = getattr(options, f"{stain}_region"), getattr(options, f"{stain}_mask")
    box = Box(*map(int, region.split(","))) if region else None
    found = []
    for text in named:
        name, _, path = text.rpartition("=")
        if bool(name) != bool(classes) or (name and name not in classes):
            raise UsageError(f"--{stain} {text}: either every slide has one of the classes, or none has", "CLASS=SLIDE")
        choice = SlideChoice(Path(path), mpp=options.mpp, region=box)
        found.append(Labelled(choice, classes.index(name) if name else None, None if name else mask))
    if not classes and len(found) > 1:
        raise UsageError(f"several --{stain} slides need classes", f"--{stain} CLASS=SLIDE")
    return found


def learned(
    targets: list[Labelled], classes: int, options: argparse.Namespace
) -> tuple[PatchClassifier, Limits | None, dict[str, Any]]:
    """The classifier, the limits if the rule gives the labels, and the scores on real patches held out."""
    patches, to_learn, to_test, held = [], [], [], []
    limits = None
    for slide in targets:
        with opened(slide.choice) as view:
            boxes = with_tissue(inside_patches(view.size, options.patch_size), tissue_mask(view, "auto"))
            crops = Crops.read(view.read, boxes, workers=options.workers)
            if slide.label is None and slide.mask is None and crops.brown:
                limits = Limits.of(crops.brown)
            to_learn.append(slide.labels(view, crops, limits, learn=True))
            to_test.append(slide.labels(view, crops, limits))
        patches += crops.patches
        held.append(held_out(boxes))
    away, wanted = np.concatenate(held), np.concatenate(to_learn)
    seen, unseen = np.flatnonzero(~away), np.flatnonzero(away)
    classifier = trained(
        [patches[i] for i in seen], wanted[seen], classes=classes, epochs=options.epochs, seed=options.seed
    )
    real: dict[str, Any] = {"trained": int((wanted[seen] >= 0).sum()), "held_out": None}
    if len(unseen):
        probabilities = classifier.probabilities([patches[i] for i in unseen])
        real["held_out"] = as_dict(score(probabilities, np.concatenate(to_test)[unseen]))
    return classifier, limits, real


def translated(slide: Labelled, method: str, options: argparse.Namespace, folder: Path) -> Path:
    choice = slide.choice
    output = folder / f"{choice.path.stem}.{method}.ome.tif"
    translate(
        Settings(
            source=SourceSettings(choice.path, mpp=choice.mpp, region=choice.region),
            model=options.model,
            output=OutputSettings(output, compression="deflate", overwrite=True, skip_existing=True),
            norm=NormSettings(patch_px=options.patch_size, **METHODS[method]),
            compute=ComputeSettings(device=options.device, workers=options.workers),
            # the three methods that measure patches share one table
            table=None if method == "tin" else folder / f"{choice.path.stem}.table",
        ),
        SilentProgress(),
    )
    return output


def tested(
    sources: list[Labelled],
    options: argparse.Namespace,
    *,
    classifier: PatchClassifier,
    limits: Limits | None,
    folder: Path,
) -> dict[str, Any]:
    """Scores by method and place, and the agreement of the methods on the crops across borders."""
    scores: dict[str, dict[str, Any]] = {}
    predictions: dict[str, Labels] = {}
    for method in options.methods:
        print(f"downstream: {method}", file=sys.stderr)
        gathered: dict[str, list[tuple[Any, Labels]]] = {where: [] for where in WHERE}
        for slide in sources:
            output = translated(slide, method, options, folder)
            with opened(SlideChoice(output)) as view, opened(slide.choice) as source:
                mask = tissue_mask(source, "auto")
                for where, boxes_of in WHERE.items():
                    boxes = with_tissue(boxes_of(view.size, options.patch_size), mask)
                    if boxes:
                        crops = Crops.read(view.read, boxes, workers=options.workers)
                        found = classifier.probabilities(crops.patches)
                        gathered[where].append((found, slide.labels(source, crops, limits)))
        if not all(gathered.values()):
            raise UsageError("no crop of the sources is at least half tissue", "a larger region, or smaller patches")
        joined = {w: [np.concatenate(part) for part in zip(*parts, strict=True)] for w, parts in gathered.items()}
        scores[method] = {where: as_dict(score(*parts)) for where, parts in joined.items()}
        predictions[method] = joined["across"][0].argmax(1)
    return {"methods": scores, "agreement": agreement(predictions)}


def table(record: dict[str, Any]) -> str:
    def number(value: float | None) -> str:
        return f"{'none' if value is None else f'{value:.3f}':>9}"

    columns = ("positive", "accuracy", "auc")
    lines = [f"{'':<18}{'crops':>6}" + "".join(f"{name:>9}" for name in columns)]
    rows = {"real, held out": record["real"]["held_out"]}
    for method, places in record["methods"].items():
        rows |= {f"{method} {where}": found for where, found in places.items()}
    for name, found in rows.items():
        if found is not None:
            lines.append(f"{name:<18}{found['n']:>6}" + "".join(number(found[column]) for column in columns))
    lines.append("\nfraction of crops across borders in the same class")
    names = list(record["agreement"])
    lines.append(f"{'':<18}" + "".join(f"{name:>9}" for name in names))
    for one in names:
        lines.append(f"{one:<18}" + "".join(number(record["agreement"][one][other]) for other in names))
    return "\n".join(lines)


def main() -> int:
    options = parsed()
    try:
        options.methods = [name.strip() for name in options.methods.split(",")]
        if unknown := set(options.methods) - METHODS.keys():
            raise UsageError(f"there is no method '{unknown.pop()}'", f"there are {', '.join(METHODS)}")
        if (options.source_mask is None) != (options.target_mask is None):
            raise UsageError("a mask of one stain only", "--source-mask and --target-mask go together")
        if options.model is None:
            from kin_cli.models.checkpoint import bundled_model

            options.model = bundled_model()
        classes = sorted({text.rpartition("=")[0] for text in options.target} - {""})
        if len(classes) == 1:
            raise UsageError(f"the only class is {classes[0]}", "--target OTHER=SLIDE, too")
        sources, targets = (slides(getattr(options, s), classes, options, s) for s in ("source", "target"))
        classifier, limits, real = learned(targets, len(classes) or 2, options)
        with ExitStack() as stack:
            folder = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folder.mkdir(parents=True, exist_ok=True)
            found = tested(sources, options, classifier=classifier, limits=limits, folder=folder)
    except KinError as error:
        print(f"downstream: {error}", file=sys.stderr)
        return error.exit_code
    labels = "classes of slides" if classes else "masks" if options.source_mask else "rule"
    record = {"labels": labels, "classes": classes, "limits": limits and vars(limits), "real": real, **found}
    print(table(record))
    if options.json is not None:
        options.json.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
