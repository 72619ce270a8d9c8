"""``kin trust``: witnesses of where a translation can be believed, on a sample of patches of a slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from kin_cli.commands.options import bundled_generator, entry_option
from kin_cli.commands.parameters import (
    FILE,
    ModelType,
    csv_option,
    examples,
    json_option,
    overwrite_option,
    series_option,
)
from kin_cli.commands.progress import ConsoleProgress
from kin_cli.commands.streams import json_text, show
from kin_cli.errors import UsageError


@cloup.command(
    short_help="Ask how far to believe a translation.",
    epilog=examples(
        "kin trust slide.svs -m generator.safetensors",
        "kin trust slide.svs -m seed0.safetensors -m seed1.safetensors --csv patches.csv",
    ),
)
@click.argument("slide", type=FILE)
@cloup.option(
    "-m",
    "--model",
    "models",
    type=ModelType(),
    multiple=True,
    help="Generator with reference statistics; further ones, of the same stains, are compared with it."
    "  [default: the bundled one]",
)
@cloup.option("--back", type=ModelType(), help="Generator of the opposite direction, as CycleGAN trains: the way back.")
@entry_option
@cloup.option("--patches", type=click.IntRange(3), default=24, show_default=True, help="Number of patches.")
@cloup.option("--level", type=click.IntRange(0), help="Pyramid level of the slide.  [default: 0]")
@cloup.option("--mpp", type=float, help="Resample the slide to this many µm per pixel, instead of --level.")
@cloup.option("--source-mpp", type=float, help="The slide's µm per pixel, if its file says nothing or is wrong.")
@series_option
@cloup.option("--device", default="auto", show_default=True, help="Device of the network: auto, cpu, cuda.")
@json_option
@csv_option
@overwrite_option
def trust(
    slide: Path, models: tuple[Path, ...], back: Path | None, csv_file: Path | None, as_json: bool, **options: Any
) -> None:
    """Translate a sample of patches of SLIDE several times over, and say where the results disagree.

    The score says how far the statistics of a patch lie from those of the training patches. The witnesses: the same
    pixels on a grid shifted by half a patch, other generators, the way back. For each its mean difference in colour,
    and how its order of the patches agrees with that of the score. The map of a whole slide comes from `kin translate`.
    """
    from kin_cli.models.checkpoint import load_generator
    from kin_cli.outputs import check_files, slide_inputs
    from kin_cli.passes.engine import Engine
    from kin_cli.slide.files import check_file
    from kin_cli.slide.open import open_source
    from kin_cli.trust.sample import load_known, sample_patches
    from kin_cli.trust.witness import witnesses

    check_file(slide)
    if options["level"] is not None and options["mpp"] is not None:
        raise UsageError("--level and --mpp exclude each other")
    first, *rest = models or (bundled_generator(),)
    inputs = [
        *slide_inputs(slide, "the slide"),
        *((path, "a generator") for path in (first, *rest, *filter(None, [back]))),
    ]
    check_files([("--csv", csv_file)], inputs, overwrite=options["overwrite"])
    known = load_known(first, device=options["device"], entry=options["entry"])
    device = known.engine.device

    def engine(path: Path) -> Engine:
        return Engine(load_generator(path), device=device, precision="fp32")

    card = known.reference.card
    source = {name: options[name] for name in ("level", "mpp", "source_mpp", "series")}
    view = open_source(slide, **source)
    with view.slide:
        sample = sample_patches(view, count=options["patches"], patch_px=card.patch_px, min_tissue=card.min_tissue)
        found = witnesses(
            sample,
            known,
            ConsoleProgress(),
            others=[engine(path) for path in rest],
            back=None if back is None else engine(back),
        )
    _tell(slide, first, found, csv_file, as_json, options["overwrite"])


def _tell(slide: Path, model: Path, found: Any, csv_file: Path | None, as_json: bool, overwrite: bool) -> None:
    from kin_cli.commands.info import table_text
    from kin_cli.commands.variants import csv_bytes
    from kin_cli.outputs import write_outputs
    from kin_cli.passes.trust import percent
    from kin_cli.trust.sample import spread

    rows, agreement = found.rows(), found.agreement()
    if csv_file is not None:
        head = list(rows[0])
        write_outputs(
            {csv_file: csv_bytes([head, *([row[name] for name in head] for row in rows)])}, overwrite=overwrite
        )
    low, middle, high = spread(found.percentile)
    below = float((found.percentile < 0.01).mean())
    if as_json:
        score = {"quantiles": {"10 %": low, "50 %": middle, "90 %": high}, "below_1_percent": below}
        facts = {"slide": str(slide), "model": str(model), "score": score, "witnesses": agreement, "patches": rows}
        show(json_text(facts))
        return
    lines = [
        ("patches", f"{len(rows)}, of the tissue of {slide.name}"),
        ("score", f"median percentile {percent(middle)} (80 %: {percent(low)} to {percent(high)})"),
        ("below 1 %", f"{percent(below)} of the patches"),
    ]
    names = {"shift": "shifted grid", "generators": "other generators", "way back": "way back"}
    for name, numbers in agreement.items():
        agrees = numbers["correlation"]
        rank = (
            "no order" if agrees is None else f"rank correlation with the score {agrees:+.2f} (p {numbers['p_value']})"
        )
        lines.append((names[name], f"{numbers['mean']:.2f} ΔE, {rank}"))
    show(table_text(lines))
