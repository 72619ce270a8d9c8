"""Hostile checkpoints: damaged files, code in pickles, nested and misleading contents, numbers that overflow."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from fuzzing.case import Case
from fuzzing.damage import damaged
from fuzzing.stock import Stock

CANARY = "code-of-a-checkpoint-ran"


class _Code:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, (f"touch {CANARY}",)


def checkpoints(rng: random.Random, folder: Path, stock: Stock) -> Case:
    """Describe a hostile checkpoint, or translate with it."""
    make = rng.choice((_damaged, _damaged, _code, _nested, _values, _values, _shapes, _header, _header, _archive))
    what, content, ending = make(rng, stock)
    file = folder / f"model{rng.choice((ending, ending, ending, '.pth', '.safetensors', '.ckpt', '.pt', '.bin'))}"
    if rng.random() < 0.03:
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    if rng.random() < 0.35:
        return Case(f"info: {what}", ["info", file.name], (file.name,), None)
    arguments = ["translate", str(stock.slide), "-o", "out.ome.tif", *stock.translate]
    arguments[arguments.index(str(stock.model))] = file.name
    # pixels that are not finite are told of the slide
    return Case(f"translate: {what}", arguments, (file.name, "slide.tif"))


def _saved(value: object, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=rng.random() < 0.7)
    return buffer.getvalue()


def _damaged(rng: random.Random, stock: Stock) -> tuple[str, bytes, str]:
    source = stock.folder / rng.choice(("tiny.pth", "legacy.pth", "tiny.safetensors"))
    how, content = damaged(source.read_bytes(), rng)
    return f"{source.name} after {how}", content, source.suffix


def _code(rng: random.Random, stock: Stock) -> tuple[str, bytes, str]:
    kind = rng.randrange(4)
    if kind == 0:
        return "a plain pickle with code", pickle.dumps(_Code(), protocol=rng.randrange(5)), ".pth"
    if kind == 1:
        return "code beside weights", _saved({"code": _Code(), "state_dict": stock.state}, rng), ".pth"
    if kind == 2:
        return "code as a weight", _saved({**stock.state, "model.1.weight": _Code()}, rng), ".pth"
    return "a whole module", _saved(torch.nn.Conv2d(3, 3, 1), rng), ".pth"


def _nested(rng: random.Random, stock: Stock) -> tuple[str, bytes, str]:
    other = {name: tensor + 1 for name, tensor in stock.state.items()}
    names = (
        "state_dict",
        "model",
        "netG",
        "netG_A2B",
        "netG_B2A",
        "params",
        "params_ema",
        "G_AB",
        "ema",
        "generator",
        "x",
        "",
        5,
        None,
    )
    value: Any = stock.state
    for _ in range(rng.choice((1, 1, 2, 3, 40))):
        value = {rng.choice(names): value}
    if rng.random() < 0.5:
        value[rng.choice(names)] = rng.choice((other, stock.state, [], None, "x", 1.5, [stock.state, other]))
    if rng.random() < 0.2:
        value = rng.choice(([value], (value,), list(stock.state.values()), "text", None, 3, {}, OrderedDict(), set()))
    if rng.random() < 0.1 and isinstance(value, dict):
        value["self"] = value
    if rng.random() < 0.2:
        prefix = rng.choice(("module.", "netG.", "_orig_mod.", "module.module.", "\n", "é.", "model."))
        value = {f"{prefix}{name}": tensor for name, tensor in stock.state.items()}
    return f"nested as {str(list(value) if isinstance(value, dict) else type(value))[:80]}", _saved(value, rng), ".pth"


def _values(rng: random.Random, stock: Stock) -> tuple[str, bytes, str]:
    state = {name: tensor.clone() for name, tensor in stock.state.items()}
    name = rng.choice(sorted(state))
    kind = rng.choice(("nan", "inf", "zero", "huge", "large", "one nan", "dtype"))
    if kind == "dtype":
        dtypes = (
            torch.float16,
            torch.bfloat16,
            torch.float64,
            torch.int64,
            torch.bool,
            torch.complex64,
            torch.uint8,
            torch.float8_e4m3fn,
        )
        dtype = rng.choice(dtypes)
        kind = str(dtype)
        for one in (name,) if rng.random() < 0.5 else sorted(state):
            state[one] = state[one].to(dtype)
    elif kind == "one nan":
        state[name].view(-1)[0] = float("nan")
    elif kind in ("huge", "large"):
        state[name] *= 1e38 if kind == "huge" else 1e10
    else:
        state[name].fill_({"nan": float("nan"), "inf": float("inf"), "zero": 0.0}[kind])
    if rng.random() < 0.5:
        return f"{name} is {kind}", safetensors.torch.save(state), ".safetensors"
    return f"{name} is {kind}", _saved(state, rng), ".pth"


def _shapes(rng: random.Random, stock: Stock) -> tuple[str, bytes, str]:
    state: dict[Any, Any] = dict(stock.state)
    name = rng.choice(sorted(state))
    kind = rng.randrange(9)
    if kind == 0:
        del state[name]
    elif kind == 1:
        state["extra.weight"] = torch.zeros(3)
    elif kind == 2:
        state[name] = torch.zeros(1).expand(1 << 40)  # takes four bytes in the file
    elif kind == 3:
        state[name] = state[name][..., None]
    elif kind == 4:
        state[name] = torch.zeros(0)
    elif kind == 5:
        state[name] = rng.choice((None, 1.5, "x", [1], torch.nn.Parameter(state[name]), state[name].to_sparse()))
    elif kind == 6:
        state[name] = torch.empty(state[name].shape, device="meta")
    elif kind == 7:
        state[name] = (state[name],)
    else:
        state = dict(enumerate(state.values()))
    return f"{name} in another shape or kind ({kind})", _saved(state, rng), ".pth"


def _header(rng: random.Random, stock: Stock) -> tuple[str, bytes, str]:
    content = (stock.folder / "tiny.safetensors").read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    name = rng.choice([key for key in header if key != "__metadata__"])
    kind = rng.randrange(10)
    if kind == 0:
        header[name]["shape"] = rng.choice(([], [0], [-1], [1 << 62], [1 << 40, 1 << 40], [1.5], "x", None, [True]))
    elif kind == 1:
        header[name]["data_offsets"] = rng.choice(([0, 0], [0, 1 << 60], [-4, 4], [8, 4], [], "x", [0, 4]))
    elif kind == 2:
        header[name]["dtype"] = rng.choice(("F64", "F16", "BOOL", "X", "", None, 3, "F8_E5M2", "I64"))
    elif kind == 3:
        values = ("abc", "0", "-1", "nan", "inf", "1e400", "0.5", "", "x" * 5000, "\0", "é", 3, None, {})
        header["__metadata__"] = {
            rng.choice(("mpp", "architecture", "width", "blocks", "training", "x")): rng.choice(values)
        }
    elif kind == 4:
        header["__metadata__"] = rng.choice((None, [], "x", 3))
    elif kind == 5:
        header = rng.choice(([], {}, "x", None, 3))
    elif kind == 6:
        del header[name]["dtype"]
    text = json.dumps(header).encode()
    if kind == 7:
        text = text[:-5]
    if kind == 8:
        text = b'{"a":' * 50_000
    length = rng.choice((0, 1, len(text) + 1, 1 << 62, (1 << 64) - 1)) if kind == 9 else len(text)
    return f"a safetensors header changed ({kind}): {name}", struct.pack("<Q", length) + text + body, ".safetensors"


def _archive(rng: random.Random, stock: Stock) -> tuple[str, bytes, str]:
    """A zip file as torch writes it, with parts left out, renamed, emptied or grown."""
    buffer, kind = io.BytesIO(), rng.choice(("without", "renamed", "emptied", "bomb", "twice", "outside", "compressed"))
    with zipfile.ZipFile(stock.model) as old, zipfile.ZipFile(buffer, "w") as new:
        names = old.namelist()
        victim = rng.choice(names)
        for name in names:
            content = old.read(name)
            how = zipfile.ZIP_DEFLATED if kind in ("compressed", "bomb") else zipfile.ZIP_STORED
            if name == victim and kind == "without":
                continue
            if name == victim:
                content = {"emptied": b"", "bomb": bytes(200 << 20)}.get(kind, content)
            new.writestr(
                {"renamed": name + "x", "outside": "../" + name}.get(kind, name) if name == victim else name,
                content,
                how,
            )
            if name == victim and kind == "twice":
                new.writestr(name + ".2", content)
    return f"archive: {victim} {kind}", buffer.getvalue(), ".pth"
