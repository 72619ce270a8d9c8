"""``kin info``: what a slide or a checkpoint is, and what translating it would take."""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path

import click

from kin_cli.commands.figures import bytes_text, mpp_text, table_text

_MODEL_ENDINGS = (".pth", ".pt", ".ckpt", ".safetensors")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--patch-size", type=click.IntRange(4), default=512, show_default=True, help="Side of a patch, px.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(file: Path, patch_size: int, as_json: bool) -> None:
    """Describe FILE: a slide, or a generator's checkpoint (.pth, .pt, .ckpt, .safetensors)."""
    facts = _model(file) if file.suffix.lower() in _MODEL_ENDINGS else _slide(file, patch_size)
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        card = facts.pop("metadata", {})
        rows = [(name.replace("_", " "), _text(name, value)) for name, value in facts.items()]
        click.echo(table_text(rows + _card_rows(card, known=facts.keys() | {"format"})))


def _model(file: Path) -> dict[str, object]:
    from kin_cli.models.checkpoint import describe, load_generator

    return {"file": str(file), **describe(load_generator(file))}


def _slide(file: Path, patch_size: int) -> dict[str, object]:
    from kin_cli.geometry import Grid
    from kin_cli.slide.mask import all_tissue
    from kin_cli.slide.opening import open_slide
    from kin_cli.slide.tissue import detect_tissue
    from kin_cli.slide.view import open_view

    with open_slide(file) as slide:
        view = open_view(slide)
        mask = detect_tissue(view) if slide.has_glass_by_default else all_tissue(view.size)
        grid = Grid(view.size, patch_size)
        with_tissue = int((mask.share(grid) > 0).sum())
        return {
            "file": str(file),
            "format": slide.format,
            "size": [view.size.width, view.size.height],
            "levels": [[size.width, size.height] for size in slide.levels],
            "mpp": slide.mpp,
            "objective": slide.objective,
            "icc_bytes": len(slide.icc or b""),
            "background": list(slide.background),
            "tissue_share": round(mask.tissue_fraction, 4),
            "patches": len(grid),
            "patches_with_tissue": with_tissue,
            # What a nine-block generator of width 64 needs; the plan of a translation knows its own (--dry-run).
            "table_bytes": with_tissue * 8 * 5248,
            "disk_bytes": int(0.8 * view.size.pixels),
            "memory_bytes": 2 << 30,
        }


def _card_rows(card: object, *, known: Set[str]) -> list[tuple[str, str]]:
    """A row for each entry of a checkpoint's metadata that is not ``known``, one for each group of the settings."""
    rows = []
    for name, text in sorted(card.items()) if isinstance(card, dict) else ():
        try:
            groups = json.loads(text) if name == "training" else None
        except ValueError:
            groups = None
        if isinstance(groups, dict):
            shown = (group for group in groups if group != "card")  # its entries stand in the metadata themselves
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
    if name.endswith("_bytes") and isinstance(value, int):
        return bytes_text(value)
    if name == "size" and isinstance(value, list):
        return f"{value[0]} × {value[1]} px"
    if name == "levels" and isinstance(value, list):
        return ", ".join(f"{width}×{height}" for width, height in value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
