"""Change finished outputs in every way that a disk or a copy might, and see that kin notices."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

from fuzzing.case import in_child
from fuzzing.damage import append, cut, swap_blocks
from fuzzing.stock import Stock

ENDINGS = (".ome.tif", ".tif", ".png", ".jpg")
SKIPS = 10  # of so many changes one is also shown to --skip-existing


def flip(stock: Stock, count: int, seed: int) -> int:
    """Make ``count`` changes to outputs with their records; return 1 if a change passes or a sound file does not."""
    rng, found, wrong = random.Random(seed), Counter[str](), []
    logs = stock.folder.parent / "logs"
    (logs / "tmp").mkdir(parents=True)
    for ending in ENDINGS:
        for said in (_check(stock, f"done{ending}", logs), _skip(stock, ending, logs)):
            if said is not None:
                wrong.append(f"done{ending}: reported as changed, but it is not: {said}")
    for number in range(count):
        ending = ENDINGS[number % len(ENDINGS)]
        file = stock.folder / f"done{ending}"
        sound = file.read_bytes()
        what, content = _changed(sound, rng)
        status = file.stat()
        try:
            file.write_bytes(content)
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
            if _check(stock, file.name, logs) is None:
                wrong.append(f"{file.name}, change {number} ({what}): kin check finds nothing")
            if number % SKIPS == 0 and _skip(stock, ending, logs) is None:
                wrong.append(f"{file.name}, change {number} ({what}): --skip-existing takes it for sound")
            if file.read_bytes() != content:
                wrong.append(f"{file.name}, change {number} ({what}): kin has replaced it")
        finally:
            file.write_bytes(sound)
        found[f"{what.split()[0]} in {ending}"] += 1
    for line in wrong:
        print("WRONG", line)
    print("; ".join(f"{name}: {times}" for name, times in sorted(found.items())))
    print(f"{count} changes, {len(wrong)} wrong")
    return 1 if wrong else 0


def _changed(sound: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return in words what was changed, and the content after it, which differs."""
    kind, data = rng.choice(("bit", "bit", "byte", "cut", "append", "swap", "zeros", "insert")), bytearray(sound)
    place = rng.randrange(len(data))
    if kind == "bit":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[place] = (data[place] + rng.randrange(1, 256)) % 256
    elif kind == "cut":
        cut(data, rng)
    elif kind == "append":
        append(data, rng)
    elif kind == "swap":
        swap_blocks(data, rng)
    elif kind == "zeros":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    else:
        data[place:place] = rng.randbytes(1)
    if data == sound:  # there were zeros before
        kind, data[place] = "byte", data[place] ^ 1
    return f"{kind} at {place}", bytes(data)


def _check(stock: Stock, name: str, logs: Path) -> str | None:
    """Return what ``kin check`` says of a file; None if it takes it for sound."""
    return _kin(["check", name], stock, logs)


def _skip(stock: Stock, ending: str, logs: Path) -> str | None:
    command = ["translate", str(stock.slide), "-o", str(stock.folder / f"done{ending}"), *stock.translate]
    return _kin([*command, "--skip-existing"], stock, logs)


def _kin(arguments: list[str], stock: Stock, logs: Path) -> str | None:
    from fuzzing.case import Case, run_kin

    code, _, said, told = in_child(lambda: run_kin(Case("", arguments)), stock.folder, logs, limit=60)
    if code == 0:
        return None
    return f"code {code}: {said}{told}" if code == 1 and "Traceback" not in said else None
