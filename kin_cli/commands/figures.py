"""Plans and descriptions as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kin_cli.plan import Plan

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def bytes_text(count: float) -> str:
    """A number of bytes with a binary unit, three figures."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 or count >= 100 else f"{count:.1f} {_UNITS[unit]}"


def table_text(rows: list[tuple[str, str]]) -> str:
    """Two columns, the first as wide as its widest entry."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def describe_plan(plan: Plan) -> str:
    """What ``--dry-run`` prints."""
    norm, view = plan.settings.norm, plan.view
    read_out = "" if norm.method == "tin" else f", kernel {norm.effective_kernel}, {norm.effective_interpolation}"
    return table_text(
        [
            ("slide", f"{plan.settings.source.slide} ({view.slide.format})"),
            ("image", f"{view.size} px, {mpp_text(view.mpp)}"),
            ("generator", f"{plan.generator.layout}, width {plan.generator.width}, {plan.generator.blocks} blocks"),
            ("method", f"{norm.method}{read_out}"),
            (
                "patches",
                f"{plan.cells} of {len(plan.grid)} with tissue ({plan.grid.rows} rows × {plan.grid.cols} columns"
                f" of {norm.patch_px} px)"
                + ("" if norm.measured_px == norm.patch_px else f", the middle {norm.measured_px} px measured"),
            ),
            ("windows", f"{plan.window_px} px, halo {plan.halo_px} px"),
            (
                "tiles",
                f"{plan.windows.translated_tiles} of {len(plan.layout.grid(0))} translated"
                f" ({plan.layout.tile} px, {len(plan.layout.sizes)} levels)",
            ),
            ("device", f"{plan.device}, {plan.precision}, batch {plan.batch}, {plan.workers} threads"),
            (
                "table",
                bytes_text(plan.table_bytes) + ("" if plan.settings.table is None else f" in {plan.settings.table}"),
            ),
            ("memory", f"at most {bytes_text(plan.host_bytes)}, whatever the slide's size"),
            ("disk", f"at most {bytes_text(plan.disk_bytes)} while working"),
            ("output", str(plan.settings.output.path)),
        ]
    )


def mpp_text(mpp: float | None) -> str:
    """Pixel size with its unit."""
    return "pixel size unknown" if mpp is None else f"{mpp:.4g} µm/px"
