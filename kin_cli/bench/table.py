"""The result of a benchmark as a table of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kin_cli.store.files import bytes_text

_BUSY = 0.5  # load per core above which other processes slow the benchmark down


def table(result: Mapping[str, Any]) -> str:
    """Format the record of a benchmark, ``BenchResult.as_dict()``."""
    machine, plan, generator = result["machine"], result["plan"], result["generator"]
    limits, whole = result["limits"], result["end_to_end"]
    layers = f"{generator['architecture']}, width {generator['width']}, {generator['blocks']} blocks"
    run = f"{plan['precision']}{', compiled' * plan['compiled']}, batch {plan['batch_size']}, {plan['workers']} threads"
    lines = [
        f"{machine['device']}, {machine['cores']} cores, torch {result['torch']}; {run}",
        f"{layers}; {plan['size'][0]}×{plan['size'][1]} px in {plan['patches']} patches of"
        f" {result['settings']['patch_px']} px{_middle(result['settings'])}",
        "",
        f"{'':<18}{'ms/patch':>10}{'Mpixel/s':>10}{'TFLOP/s':>10}{'of product':>12}{'of convolution':>16}",
        *(_line(stage["name"], stage) for stage in result["stages"]),
        _line("end to end", whole),
        _line("plain loop", result["plain_loop"]),
        _line("plain loop, twice", result["plain_loop_twice"]),
        "",
        *(f"{name + ' limit':<18}{limit['tflop_per_s']:>30.3g}  {limit['what']}" for name, limit in limits.items()),
        f"end to end: {result['speedup']:.2f} times the plain loop (batch 1, float32, PNG per patch),"
        f" {result['speedup_twice']:.2f} times one that runs each patch twice, as kernelized normalization must;"
        f" {_percent(whole['fraction_of_slowest_stages'])} of the speed of its slowest stages",
    ]
    ratio = seamless_ratio(result)
    if ratio is not None:
        lines.append(f"both passes with seamless windows: {ratio:.2f} times the time of plain ones per pixel")
    memory = result["memory"]
    device = memory["peak_device_bytes"]
    lines.append(
        f"memory of the translation: {bytes_text(memory['peak_rss_bytes'])}"
        + ("" if device is None else f", {bytes_text(device)} on the device")
    )
    load = machine["load_before"]
    if load is not None and load > _BUSY * machine["cores"]:
        lines.append(
            f"note: the machine was busy before (load {load} on {machine['cores']} cores): times are upper bounds"
        )
    return "\n".join(lines)


def seamless_ratio(result: Mapping[str, Any]) -> float | None:
    """Time of both passes with the windows of ``--seamless`` over that with plain windows; None if not measured."""
    seconds = {stage["name"]: float(stage["seconds_per_patch"]) for stage in result["stages"]}
    if "apply, seamless" not in seconds:
        return None
    return (seconds["measure"] + seconds["apply, seamless"]) / (seconds["measure"] + seconds["apply"])


def _middle(settings: Mapping[str, Any]) -> str:
    side = settings["measured_px"]
    return "" if side == settings["patch_px"] else f", of which pass 1 sees the middle {side}"


def _line(name: str, found: Mapping[str, Any]) -> str:
    line = f"{name:<18}{number(1000 * found['seconds_per_patch']):>10}{number(found['mpixel_per_s']):>10}"
    if found.get("tflop_per_s") is not None:
        line += f"{found['tflop_per_s']:>10.3g}{_percent(found['fraction_of_product']):>12}"
        line += f"{_percent(found['fraction_of_convolution']):>16}"
    return line


def number(value: float) -> str:
    """Format with three significant digits, or without decimals from 1000 on."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"
