"""The table of a benchmark."""

from __future__ import annotations

from typing import Any

from kin_cli.bench.table import seamless_ratio, table


def test_the_table_shows_every_stage(measured: dict[str, Any]) -> None:
    lines = table(measured).splitlines()
    for name in ("read", "measure", "apply", "encode", "levels", "end to end", "plain loop", "plain loop, twice"):
        line = next(line for line in lines if line.startswith(name))
        assert len(line.split()) >= 3
    apply = next(stage for stage in measured["stages"] if stage["name"] == "apply")
    line = next(line for line in lines if line.startswith("apply"))
    assert f"{100 * apply['fraction_of_product']:.0f} %" in line
    assert any(f"{measured['speedup']:.2f} times the plain loop" in line for line in lines)
    for load, said in ((0.0, False), (99.0, True), (None, False)):
        told = table({**measured, "machine": {**measured["machine"], "load_before": load}})
        assert ("the machine was busy" in told) == said


def test_the_seamless_ratio_is_that_of_both_passes() -> None:
    seconds = {"measure": 3.0, "apply": 1.0, "apply, seamless": 2.0}
    stages = [{"name": name, "seconds_per_patch": value} for name, value in seconds.items()]
    assert seamless_ratio({"stages": stages}) == 1.25
    assert seamless_ratio({"stages": stages[:2]}) is None
