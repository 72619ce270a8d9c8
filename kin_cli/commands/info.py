"""``kin info``: describe a slide or a checkpoint. ``kin check``: verify a finished file. And plans as text."""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from kin_cli.commands.options import entry_option, network_settings, norm_option, with_network_options
from kin_cli.commands.parameters import FILE, ModelType, examples, series_option
from kin_cli.commands.progress import duration
from kin_cli.commands.streams import json_text, show
from kin_cli.errors import InputError, UsageError
from kin_cli.memory import memory_limit
from kin_cli.store.files import bytes_text, named_beside

if TYPE_CHECKING:
    from kin_cli.models.checkpoint import Generator
    from kin_cli.plan import Plan
    from kin_cli.pyramid.provenance import Provenance

_MODEL_ENDINGS = (".pth", ".pt", ".ckpt", ".safetensors")
_LABELS = {"icc_bytes": "ICC profile", "table_bytes": "table", "disk_bytes": "disk", "memory_bytes": "memory"}
_ESTIMATES = ("table_bytes", "disk_bytes", "memory_bytes")


@cloup.command(
    short_help="Describe a slide, generator or output.",
    epilog=examples(
        "kin info slide.svs",
        "kin info latest_net_G.pth",
        "kin info slide.kin.ome.tif",
        "kin info slide.svs -m generator.safetensors",
    ),
)
@click.argument("file", type=FILE)
@cloup.option(
    "--patch-size",
    type=click.IntRange(4),
    help="Side of the patches to count, px.  [default: as FILE tells, otherwise 512]",
)
@series_option
@entry_option
@norm_option
@with_network_options
@cloup.option(
    "-m",
    "--model",
    type=ModelType(),
    help="Generator, of which to say whether the slide FILE is like its training, and whether other colours or another"
    " pixel size bring it nearer.",
)
@cloup.option("--json", "as_json", is_flag=True, help="Print the description as JSON.")
def info(
    file: Path, patch_size: int | None, series: int | None, model: Path | None, as_json: bool, **options: Any
) -> None:
    """Describe FILE: a slide, or a generator's checkpoint (.pth, .pt, .ckpt, .safetensors).

    FILE may be a name that kin models lists. With --network, FILE holds the weights of that network. Of an output of
    kin it also tells how it was made: program, source, generator, settings and digest. A TIFF holds that itself; of a
    PNG or JPEG it is in the record beside it (FILE.json).
    """
    file = _of_shelf(file)
    is_model = file.suffix.lower() in _MODEL_ENDINGS or options["network"] is not None
    facts = _model(file, patch_size or 512, options) if is_model else _slide(file, patch_size, series)
    if model is not None and is_model:
        raise UsageError(f"{file}: is a generator, and --model goes with a slide", "kin info SLIDE -m GENERATOR")
    if model is not None:
        facts["trust"] = _nearness(file, model, series, entry=options["entry"], norm=options["model_norm"])
    if as_json:
        show(json_text(facts))
    else:
        card, made = facts.pop("metadata", {}), facts.pop("made", None)
        near = facts.pop("trust", [])
        rows = [(_LABELS.get(name, name.replace("_", " ")), _text(name, value)) for name, value in facts.items()]
        rows += _trust_rows(near)
        show(table_text(rows + _card_rows(card, known=facts.keys() | {"format"}) + _made_rows(made)))


def _of_shelf(file: Path) -> Path:
    from kin_cli.models.named import shelf

    return file if file.exists() or len(file.parts) != 1 else shelf()[0].get(file.name, file)


@cloup.command(
    short_help="Verify that files are complete and readable.",
    epilog=examples(
        "kin check translated/*.ome.tif",
    ),
)
@click.argument("files", type=FILE, nargs=-1, required=True)
def check(files: tuple[Path, ...]) -> int:
    """Read every tile of every level of each FILE; exit with code 1 if anything is damaged or missing.

    An output that kin made is compared byte for byte with the digest in its record (FILE.json), if that lies beside it.
    Any other slide is read from its first to its last pixel.
    """
    bad = 0
    for file in files:
        problems, verdict = _checked(file)
        bad += bool(problems)
        for line in problems or [verdict]:
            show(f"{file}: {line}")
    return 1 if bad else 0


def _checked(file: Path) -> tuple[list[str], str]:
    """What is wrong with a file, and what to say of it if nothing is."""
    from kin_cli.pyramid.check import check_file, compared_with_record, is_image_file
    from kin_cli.slide.files import check_file as check_source
    from kin_cli.slide.survey import unreadable_parts

    try:
        check_source(file)  # a pipe or a device would be waited on for ever
    except InputError as error:
        return [str(error).removeprefix(f"{file}: ")], ""
    if not is_image_file(file):
        return unreadable_parts(file), "every pixel of every level can be read"
    problems = check_file(file)
    return (problems, "") if problems else compared_with_record(file)


def describe_plan(plan: Plan, seconds: float | None = None) -> str:
    """Return a plan as text, one line for each of its parts, and its estimated time; ``--dry-run`` prints it."""
    norm, view = plan.settings.norm, plan.view
    grid, generator, windows = plan.grid, plan.generator, plan.windows
    smoothing = "" if norm.method == "tin" else f", kernel {norm.effective_kernel}, {norm.effective_interpolation}"
    measured = "" if norm.measured_px == norm.patch_px else f", the middle {norm.measured_px} px measured"
    shape = f"{grid.rows} rows × {grid.cols} columns of {norm.patch_px} px"
    patches = f"{plan.translated_patches} of {len(grid)} with tissue ({shape})"
    tiles = f"{windows.translated_tiles} of {len(plan.layout.grid(0))} translated"
    levels = _counted(len(plan.layout.sizes), "level")
    decoded = view.slide.temporary_bytes
    temporary = f", and {bytes_text(decoded)} in the temporary folder (TMPDIR)" if decoded else ""
    memory = bytes_text(memory_limit())
    kept = "" if plan.settings.table is None else f" in {plan.settings.table}"
    return table_text(
        [
            ("slide", f"{plan.settings.source.slide} ({view.slide.format})"),
            ("image", f"{view.size} px, {mpp_text(view.mpp)}"),
            ("generator", _generator_text(generator)),
            ("method", f"{norm.method}{smoothing}"),
            ("patches", f"{patches}{measured}"),
            ("windows", f"{plan.window_px} px, halo {plan.halo_px} px"),
            ("tiles", f"{tiles} ({plan.layout.tile} px, {levels})"),
            ("device", f"{plan.device}, {plan.precision}, batch {plan.batch}, {plan.workers} threads"),
            ("table", f"{bytes_text(plan.table_bytes)}{kept}"),
            ("memory", f"at most {bytes_text(plan.host_bytes)}, whatever the slide's size; {memory} may be used here"),
            ("disk", f"at most {bytes_text(plan.disk_bytes)} while working{temporary}"),
            *(() if seconds is None else [("time", f"about {duration(seconds)}, from timing a patch")]),
            ("output", str(plan.settings.output.path)),
            *(("note", note) for note in plan.notes()),
        ]
    )


def _generator_text(generator: Generator) -> str:
    if generator.spec is None:
        return f"{generator.architecture}, {_counted(generator.norm_layers, 'exchanged norm')}"
    return f"{generator.architecture}, width {generator.width}, {generator.blocks} blocks"


def table_text(rows: list[tuple[str, str]]) -> str:
    """Return rows of a name and a value as text in two aligned columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def mpp_text(mpp: float | None) -> str:
    """Return a pixel size with its unit."""
    return "pixel size unknown" if mpp is None else f"{mpp:.4g} µm/px"


def _model(file: Path, patch_size: int, options: dict[str, Any]) -> dict[str, object]:
    from kin_cli.models.checkpoint import describe, load_generator
    from kin_cli.models.own import load_network

    own = network_settings(options)
    entry, norm = options["entry"], options["model_norm"]
    if own["network"] is None:
        generator = load_generator(file, entry=entry, norm=norm)
        return {"file": str(file), **describe(generator), **_reference(file, generator.channels)}
    if norm is not None:
        raise UsageError("--norm and --network exclude each other", "a network of your own has its own norm layers")
    loaded = load_network(own["network"], file, entry=entry, input_range=own["input_range"], patch_px=patch_size)
    return {"file": str(file), **describe(loaded)}


def _reference(file: Path, channels: int) -> dict[str, object]:
    """What the file says about the generator's training patches, if anything."""
    from kin_cli.models.reference import read_reference

    reference = read_reference(file, channels) if channels else None
    if reference is None:
        return {}
    card = reference.card
    scale = "" if card.mpp is None else f" at {card.mpp:.4g} µm/px"
    colours = f", colours for --stain-match {' and '.join(card.stains)}" if card.stains else ""
    text = f"{card.patches} patches of {card.patch_px} px{scale} of {', '.join(card.images[:3])}"
    more = f" and {len(card.images) - 3} more" if len(card.images) > 3 else ""
    return {"reference": f"{text}{more}{colours}"}


def _nearness(file: Path, model: Path, series: int | None, **chosen: Any) -> list[dict[str, object]]:
    """How near the slide is to what the generator was trained on: as it is, in other colours, at other pixel sizes."""
    from kin_cli.commands.progress import ConsoleProgress
    from kin_cli.trust.sample import load_known, nearness, verdict

    found = nearness(file, load_known(model, **chosen), ConsoleProgress(), series=series)
    rows: list[dict[str, object]] = [
        {"as": one.name, "median_percentile": float(f"{one.median:.4g}"), "below_1_percent": round(one.below, 4)}
        | ({} if one.before == found[0].before else {"as_it_is_judged_alike": float(f"{one.before:.4g}")})
        for one in found
    ]
    rows += [{"verdict": line} for line in verdict(found)]
    return rows


def _slide(file: Path, patch_size: int | None, series: int | None) -> dict[str, object]:
    from kin_cli.geometry import Grid
    from kin_cli.pyramid.provenance import provenance
    from kin_cli.slide.open import open_slide
    from kin_cli.slide.tissue import tissue_mask
    from kin_cli.slide.view import open_view

    with open_slide(file, series=series) as slide:
        view = open_view(slide)
        mask, made = tissue_mask(view, "auto"), provenance(file)
        grid = Grid(view.size, patch_size or (made and made.patch_px) or 512)
        with_tissue = int((mask.fraction(grid) > 0).sum())
        return {
            "file": str(file),
            "format": slide.format,
            "size": [view.size.width, view.size.height],
            "levels": [[size.width, size.height] for size in slide.levels],
            "mpp": slide.mpp,
            "objective": slide.objective,
            "icc_bytes": len(slide.icc or b""),
            "background": list(slide.fill_colour),
            "tissue_fraction": round(mask.tissue_fraction, 4),
            "patch_size": grid.step,
            "patches": len(grid),
            "patches_with_tissue": with_tissue,
            # Estimates for a generator of width 64 with nine blocks; --dry-run knows the numbers of a translation.
            "table_bytes": with_tissue * 8 * 5248,
            "disk_bytes": int(0.8 * view.size.pixels),
            "memory_bytes": (2 << 30) + slide.memory_bytes,
            **({"notes": list(slide.notes)} if slide.notes else {}),
            **({} if made is None else {"made": _made(made)}),
        }


def _made(made: Provenance) -> dict[str, object]:
    """How an output was made, ready for JSON; paths and digest are known from the record only."""
    record = made.record or {}
    return {
        "software": made.software,
        "slide": record.get("slide") or made.slide,
        "slide_bytes": made.value("slide bytes"),
        "part": made.part,
        "model": record.get("model"),
        "model_sha256": made.value("model sha256"),
        "record": None if made.record is None else named_beside(made.file, ".json").name,
        "output_sha256": record.get("output_sha256"),
        "settings": {name: made.value(name) for name in made.settings},
    }


_TOLD_ELSEWHERE = frozenset(
    ("slide", "slide bytes", "width", "height", "level", "mpp", "resampled", "region", "model sha256", "kin", "output")
    + ("method", "kernel", "interpolation", "patch size", "window", "halo")
)


def _made_rows(made: Any) -> list[tuple[str, str]]:
    """How an output was made as rows: what most ask for in a row each, all other settings in the last but one."""
    if made is None:
        return []
    told, size, record = made["settings"], made["slide_bytes"], made["record"]
    weight = f" ({size:,} bytes)" if isinstance(size, int) else ""
    method = f"{told.get('method')}, kernel {told.get('kernel')}, {told.get('interpolation')}"
    sizes = f"patches of {told.get('patch size')} px, windows of {told.get('window')} px, halo {told.get('halo')} px"
    digest = f"SHA-256 {made['output_sha256']} by its record ({record}); kin check compares it"
    return [
        ("made by", made["software"]),
        ("source", f"{made['slide']}{weight}, {made['part']}"),
        ("generator", f"{made['model'] or 'name unknown'}, SHA-256 {made['model_sha256']}"),
        ("method", f"{method}, {sizes}"),
        ("settings", _settings_text({name: value for name, value in told.items() if name not in _TOLD_ELSEWHERE})),
        ("digest", digest if record else "unknown, its record is not beside it"),
    ]


def _trust_rows(found: Any) -> list[tuple[str, str]]:
    """Return a row for each entry of ``_nearness``."""
    from kin_cli.passes.trust import percent

    rows = []
    for entry in found:
        if "verdict" in entry:
            rows.append(("trust", entry["verdict"]))
        else:
            median, below = percent(entry["median_percentile"]), percent(entry["below_1_percent"])
            alike = entry.get("as_it_is_judged_alike")
            compared = "" if alike is None else f" (as it is, judged alike: {percent(alike)})"
            rows.append(
                ("trust", f"{entry['as']}: median percentile {median}{compared}, {below} of the patches below 1 %")
            )
    return rows


def _card_rows(card: object, *, known: Set[str]) -> list[tuple[str, str]]:
    """Return a row for each entry of a checkpoint's metadata that is not ``known``.

    The entry ``training`` holds settings in JSON and becomes one row for each group of settings.
    """
    rows = []
    for name, text in sorted(card.items()) if isinstance(card, dict) else ():
        try:
            groups = json.loads(text) if name == "training" else None
        except (ValueError, RecursionError):
            groups = None
        if isinstance(groups, dict):
            shown = (group for group in groups if group != "card")  # its entries are entries of the metadata, too
            rows += [(f"training {group}", _settings_text(groups[group])) for group in shown]
        elif name not in known:
            rows.append((name.replace("_", " "), str(text)))
    return rows


def _settings_text(values: object) -> str:
    if not isinstance(values, dict):
        return str(values)
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in (None, "", [])) or "none"


def _text(name: str, value: object) -> str:
    if name == "mpp":
        return mpp_text(value if isinstance(value, float) else None)
    if name == "icc_bytes" and not value:
        return "none"
    if name.endswith("_bytes") and isinstance(value, int):
        return bytes_text(value) + (", an estimate for a generator of width 64" if name in _ESTIMATES else "")
    if name == "objective" and isinstance(value, float):
        return f"{value:g}×"
    if name == "patch_size":
        return f"{value} px"
    if name == "size" and isinstance(value, list):
        return f"{value[0]} × {value[1]} px"
    if name == "levels" and isinstance(value, list):
        return ", ".join(f"{width}×{height}" for width, height in value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
