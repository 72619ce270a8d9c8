"""Option values at the edges of what they may be, for every command."""

from __future__ import annotations

import random
from pathlib import Path

import click

from fuzzing.case import Case
from fuzzing.stock import Stock

_VALUES = (
    "", " ", "0", "-0", "1", "-1", "2", "3", "4", "5", "63", "64", "1.5", "1e3", "1e400", "nan", "-inf", "1e-320",
    "2147483648", "9223372036854775808", "99999999999999999999999", "0x10", "1_0", "٣", "½", "é", "🔬", "a\nb",
    "\x1b[31m", "x" * 5000, "auto", "none", "None", "true", ",", ",,,", "0,0,1,1", "0,0,0,0", "-1,-1,9,9",
    "1e9,0,1,1", "300,250,100,100", "99999999999,0,1,1", "0,0,99999999999,99999999999", "constant:3", "constant:0",
    "constant:2", "gaussian:7:0", "gaussian:7:nan", "gaussian:999999999", "gaussian:3:1e-300", "global", "global:3",
    "1/1", "0/1", "2/1", "1/0", "-1/3", "1/99999999999", "auto/3", "cpu", "cpu,cpu", "cpu:1", "cuda", "cuda:99",
    "meta", "mps", "xla", "../x", "/", ".", "..", "--", "-", "/dev/null", "/dev/full", "~", "b\udcffad.tif",
    "missing.tif", "slide.tif", "mask.png", "8192x", "x8192", "0x0", "64x64", "1x1",
)  # fmt: skip
_BASES = {
    "translate": ["slide.tif", "-o", "out.ome.tif"],
    "assemble": ["slide.tif", "-o", "out.ome.tif"],
    "batch": ["slide.tif", "-o", "out", "--dry-run"],
    "info": ["slide.tif"],
    "check": ["slide.tif"],
    "evaluate": ["slide.tif", "--metrics", "sobel,histogram", "--tile-size", "128"],
    "seams": ["slide.tif"],
    "analyse": ["slide.tif"],
    "compare": ["slide.tif"],
    "sweep": ["slide.tif"],
    "sample": ["made.tif", "--size", "64"],
}
_WITH_MODEL = ("translate", "assemble", "batch", "analyse", "compare", "sweep")


def options(rng: random.Random, folder: Path, stock: Stock) -> Case:
    """A command with one to three option values, or an argument, from a list of difficult ones."""
    from kin_cli.commands.main import cli

    command = rng.choice(("translate",) * 12 + tuple(_BASES))
    stock.copy("slide.tif", folder / "slide.tif")
    stock.copy("mask.png", folder / "mask.png")
    arguments = [command, *_BASES[command]]
    if command in _WITH_MODEL:
        arguments += ["-m", str(stock.model), "--patch-size", "64", "--device", "cpu"]
    dry = command == "translate" and rng.random() < 0.5
    if dry:
        arguments.append("--dry-run")
    flags, chosen = ("help", "debug"), []
    known = [p for p in cli.commands[command].params if isinstance(p, click.Option) and p.name not in flags]
    for option in rng.sample(known, min(len(known), rng.choice((1, 1, 1, 2, 3)))):
        name = rng.choice(option.opts)
        value = rng.choice(_choices(option))
        chosen += [name] if option.is_flag else [f"{name}={value}"] if name.startswith("--") else [name, value]
    if rng.random() < 0.1:
        arguments[1] = rng.choice(_VALUES)
    if rng.random() < 0.1:
        chosen += rng.choice(
            (["--nonsense"], ["extra"], ["--", "-x"], ["--kernel"], ["-j"], ["--shard=1/2", "--pass=apply"])
        )
    case = Case(
        " ".join([command, *chosen])[:300], [part.replace("\0", "") for part in arguments + chosen], output=None
    )
    # the user may name any path as an output, so anything new may appear; what was there must stay
    writes = {"translate": "out.ome.tif", "assemble": "out.ome.tif"}
    case.output = writes.get(command) if not dry else None
    case.may_appear = r"(?!slide|mask|.*\.tmp).*"
    case.on_stdout = command in ("check", "seams")
    return case


def _choices(option: click.Option) -> tuple[str, ...]:
    more = tuple(option.type.choices) if isinstance(option.type, click.Choice) else ()
    return tuple(value.replace("\0", "") for value in _VALUES) + more * 5
