"""The result as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BUSY = 0.5  # runnable threads per core, from when on others take time that is ours


def table(result: Mapping[str, Any]) -> str:
    """Lines of text from ``BenchResult.as_dict``."""
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
        f" {_percent(whole['share_of_slowest_stages'])} of the speed of its slowest stages",
    ]
    ratio = seamless_ratio(result)
    if ratio is not None:
        lines.append(f"both passes with seamless windows: {ratio:.2f} times the time of plain ones per pixel")
    memory = result["memory"]
    device = memory["peak_device_bytes"]
    lines.append(
        f"memory of the translation: {memory['peak_rss_bytes'] / 2**20:.0f} MiB"
        + ("" if device is None else f", {device / 2**20:.0f} MiB on the device")
    )
    load = machine["load_before"]
    if load is not None and load > _BUSY * machine["cores"]:
        lines.append(
            f"note: the machine was busy before (load {load} on {machine['cores']} cores): times are upper bounds"
        )
    return "\n".join(lines)


def seamless_ratio(result: Mapping[str, Any]) -> float | None:
    """Time per pixel of both passes, the second in the windows of ``--seamless``, over that with plain windows."""
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
        line += f"{found['tflop_per_s']:>10.3g}{_percent(found['share_of_product']):>12}"
        line += f"{_percent(found['share_of_convolution']):>16}"
    return line


def number(value: float) -> str:
    """Three digits, or all before the point where there are more."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"
