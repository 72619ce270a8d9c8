"""Results of ``benchmarks/gpu.sh`` as Markdown tables and a figure: python benchmarks/report_bench.py FOLDER

Reads the JSON of every ``kin bench`` in the folder, prints the tables, and draws the time per stage to
FOLDER/stages.png (needs matplotlib, the extra ``figures``; without it, only a note is printed).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kin_cli.bench.table import number, seamless_ratio, table

_COLOURS = {"read": "#7a8896", "encode": "#a9b4bf", "levels": "#cfd6dc", "measure": "#3b6fb6", "apply": "#8a3ffc"}


def results(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for file in sorted(folder.glob("*.json")):
        try:
            found[file.stem] = json.loads(file.read_text())
        except ValueError:
            print(f"{file}: not JSON; the run must have failed", file=sys.stderr)
    return found


def stage(result: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((stage for stage in result["stages"] if stage["name"] == name), None)


def overview(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| run | batch | measure, ms/patch | of product | apply, ms/patch | of product | seamless / plain | end to end,"
        " Mpixel/s | of slowest stages | times plain loop | times two of it | device MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in found.items():
        measure, apply, ratio = stage(result, "measure"), stage(result, "apply"), seamless_ratio(result)
        assert measure is not None
        assert apply is not None
        whole, device = result["end_to_end"], result["memory"]["peak_device_bytes"]
        cells = [
            name,
            str(result["plan"]["batch_size"]),
            *(
                text
                for found in (measure, apply)
                for text in (f"{1000 * found['seconds_per_patch']:.2f}", f"{100 * found['fraction_of_product']:.0f} %")
            ),
            "" if ratio is None else f"{ratio:.2f}",
            f"{whole['mpixel_per_s']:.1f}",
            f"{100 * whole['fraction_of_slowest_stages']:.0f} %",
            f"{result['speedup']:.2f}",
            f"{result['speedup_twice']:.2f}",
            "" if device is None else f"{device / 2**20:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw bars of milliseconds per patch for the stages of every run that is not quick."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no figure: matplotlib is not installed (pip install 'kin-cli[figures]')", file=sys.stderr)
        return
    rows = [
        (f"{name}: {part['name']}", part)
        for name, result in found.items()
        if not result["settings"]["quick"]
        for part in [*result["stages"], {"name": "end to end", **result["end_to_end"]}]
    ]
    if not rows:
        return
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.3 * len(rows)), layout="constrained")
    times = [1000 * part["seconds_per_patch"] for _, part in rows]
    spread = [
        [time - 1000 * part["fastest"] for time, (_, part) in zip(times, rows, strict=True)],
        [1000 * part["slowest"] - time for time, (_, part) in zip(times, rows, strict=True)],
    ]
    colours = [_COLOURS.get(part["name"].split(",")[0], "#1c1e21") for _, part in rows]
    axes.barh([name for name, _ in rows], times, xerr=spread, color=colours, ecolor="#555")
    axes.invert_yaxis()
    axes.set_xlabel("ms per patch (median; whiskers: fastest and slowest repeat)")
    first = next(iter(found.values()))
    axes.set_title(f"{first['machine']['device']}, {first['machine']['cores']} cores")
    axes.spines[["top", "right"]].set_visible(False)
    for place, time in enumerate(times):
        axes.annotate(f" {number(time)}", (spread[1][place] + time, place), va="center", fontsize=8)
    axes.margins(x=0.12)
    figure.savefig(file, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    found = results(folder)
    if not found:
        print(f"{folder}: no result of kin bench", file=sys.stderr)
        return 1
    print(overview(found))
    for name, result in found.items():
        print(f"\n{name}\n\n{table(result)}")
    draw(found, folder / "stages.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
