"""Hostile manifests and configuration files."""

from __future__ import annotations

import random
from pathlib import Path

from fuzzing.case import Case
from fuzzing.damage import damaged
from fuzzing.masks import CODECS, store
from fuzzing.stock import Stock

_CELLS = (
    "slide.tif", "slide.tif", "slide.tif", "./slide.tif", "missing.tif", "", " ", "../outside.tif", "/etc/passwd", "~",
    "a\0b.tif", "x" * 300, "x" * 5000, '"', '""', "'", "=1+1", "слайд.tif", "a\nb.tif", "sub/slide.tif", ".", "..",
    "CON", "-o", "--help", "folder",
)  # fmt: skip
_OUTPUTS = (
    "out.ome.tif", "a.ome.tif", "a.png", "", "../out.ome.tif", "/tmp/kin-outside.ome.tif", "sub/a.ome.tif", "..", ".",
    "a/../../b.ome.tif", "x", "a.xyz", "A.OME.TIF", "x" * 250 + ".ome.tif", "kin-batch/status.json", "kin-batch/x.png",
    "a.ome.tif.kin-work/x.png", "out.ome.tif.json", "link/a.ome.tif",
)  # fmt: skip
_SIZES = (
    "0.5", "0.5", "", "0,5", "0", "-1", "nan", "inf", "1e-400", "1e400", "½", "0.5 µm", "٠.٥", "0x1", "1_0", "abc",
    "99999", "1e-9",
)  # fmt: skip


def manifests(rng: random.Random, folder: Path, stock: Stock) -> Case:
    """A batch whose manifest is hostile; mostly a dry run, since each real one starts another process."""
    inside = folder / "in"
    inside.mkdir()
    (folder / "out").mkdir()
    (folder / "elsewhere").mkdir()
    (folder / "out" / "link").symlink_to("../elsewhere")
    stock.copy("slide.tif", inside / "slide.tif")
    (inside / "folder").mkdir()
    stock.copy("mask.png", inside / "mask.png")
    delimiter = rng.choice((",", ",", ";", "\t", "|"))
    columns = ["wsi", *rng.sample(("mpp", "output", "model", "mask", "extra", "WSI", "", "wsi"), rng.randrange(4))]
    if rng.random() < 0.1:
        rng.shuffle(columns)
        columns = columns[1:]
    cells = {
        "wsi": _CELLS,
        "mpp": _SIZES,
        "output": _OUTPUTS,
        "model": (*_CELLS, str(stock.model)),
        "mask": ("mask.png", "", *_CELLS),
    }
    lines = [delimiter.join(columns)]
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        row = [rng.choice(cells.get(name, _CELLS)) for name in columns]
        row = [f'"{cell}"' if rng.random() < 0.2 or delimiter in cell else cell for cell in row]
        lines.append(
            delimiter.join(row[: rng.choice((None, None, None, len(row) - 1))] + ["x"] * rng.choice((0, 0, 0, 2)))
        )
    if rng.random() < 0.1:
        lines.insert(0, f"sep={delimiter}")
    if rng.random() < 0.15:
        lines.append(lines[-1])
    content = rng.choice(("\n", "\r\n", "\r")).join(lines).encode(rng.choice(CODECS), errors="replace")
    if rng.random() < 0.1:
        content = damaged(content, rng)[1]
    store(inside / "list.csv", content, rng)
    real = rng.random() < 0.12
    arguments = ["batch", "--manifest", "in/list.csv", "-o", "out", *stock.translate, *([] if real else ["--dry-run"])]
    appear = r"out/(?!\.\.)[^/].*" if real else None
    names = ("list.csv", "wsi", "in/", "out/", "/etc/passwd", "outside", "[1/")
    return Case(f"{content[:300]!r}", arguments, names, None, may_appear=appear, on_stdout=real)


_VALUES = (
    "true", "false", "0", "1", "-1", "64", "1.5", "nan", "inf", "-inf", "1e400", "99999999999999999999", '""', '"x"',
    '"auto"', '"none"', "[]", "[1, 2]", "{}", "{a = 1}", "1979-05-27", "1979-05-27T07:32:00Z", "07:32:00", '"é🔬"',
    "'''\n'''", '"\\u0000"', '"' + "x" * 5000 + '"', '"gaussian:7"', '"gaussian:nan"', '"0,0,64,64"', "0x40", "1_000",
    '"cpu"', "[[1]]", "[true]",
)  # fmt: skip
_TEXTS = (
    "", "a", "= 1", "kernel", "kernel =", '[kernel]\nx = 1', "kernel = 1\nkernel = 2", "\0", "kernel = 'x",
    "[[a]]\n[[a]]", "a" * 100_000, "x = " + "[" * 5000, "patch-size = 64\npatch_size = 128", "config = 'config.toml'",
    "output = '../stolen.ome.tif'", "slide = 'x.tif'", "help = true", "debug = true", "overwrite = 'yes'",
    "# only a comment", "dry-run = 1", '"patch-size" = 64', "patch.size = 64",
)  # fmt: skip


def configs(rng: random.Random, folder: Path, stock: Stock) -> Case:
    """A translation with a hostile configuration file."""
    import click

    from kin_cli.commands.translate import translate

    keys = [p.name.replace("_", "-") for p in translate.params if isinstance(p, click.Option) and p.name]
    if rng.random() < 0.25:
        text = rng.choice(_TEXTS)
    else:
        # a long run is none of the kinds here: the device stays the CPU
        chosen = rng.sample(sorted(set(keys) - {"device"}), rng.choice((1, 1, 1, 2, 4)))
        text = "\n".join(f"{key.replace('-', rng.choice('-_'))} = {rng.choice(_VALUES)}" for key in chosen)
    content = text.encode(rng.choice(CODECS), errors="replace")
    if rng.random() < 0.1:
        content = damaged(content, rng)[1]
    store(folder / "config.toml", content, rng)
    options = ["--config", "config.toml", "-m", str(stock.model), "--device", "cpu"]
    dry = rng.random() < 0.5
    arguments = ["translate", str(stock.slide), "-o", "out.ome.tif", *options, *(["--dry-run"] if dry else [])]
    appear = r"(x|é🔬|auto|none|cpu)(/.*)?|x{5000}.*|gaussian.*|0,0,64,64.*"  # the folder of the key "table"
    case = Case(
        f"{content[:300]!r}",
        arguments,
        ("config.toml", "--", "slide.tif", "xxx", *keys),
        None if dry else "out.ome.tif",
        may_appear=appear,
    )
    if "dry" in text or "pass" in text:
        case.output, case.may_appear = None, r"(?!config).*"
    return case
