"""Hostile work folders, records, kept tables and claims; and standard streams that are closed, full or broken."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

from fuzzing.case import Case
from fuzzing.damage import damaged
from fuzzing.stock import STAGES, Stock, digest

_JUNK = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"\0" * 64,
    b"{",
    b'{"files": 3}',
    b'{"sha256": 5, "files": []}',
    b"\xff\xfe{}",
    b"[" * 100_000,
)
USERS_FILE = "precious.txt"


def folders(rng: random.Random, folder: Path, stock: Stock) -> Case:
    """Continue work of which one file was damaged or replaced, or in whose folder something else lies."""
    place = stock.folder / "work" / rng.choice(STAGES)
    shutil.copytree(place, folder, dirs_exist_ok=True, symlinks=True)
    (folder / USERS_FILE).write_bytes(b"never to be touched")
    (folder / "mine").mkdir()
    (folder / "mine" / "slide-0.dat").write_bytes(b"mine")
    work = folder / "out.ome.tif.kin-work"
    what = f"interrupted in {place.name}: {_spoil(rng, work, folder)}"
    more = rng.choice(([], [], [], ["--overwrite"], ["--skip-existing"]))
    arguments = ["translate", "slide.tif", "-o", "out.ome.tif", *stock.translate, *more]
    # a whole work folder that was replaced is not kin's to change; what kin knows by name is
    own = r"out\.ome\.tif\.kin-work(/\.?(fingerprint|begun|finished|slide|record|claim|output|[a-z]+-)[^/]*)?"
    changeable = own if work.is_dir() and not work.is_symlink() else None
    case = Case(
        f"{what} {' '.join(more)}", arguments, ("out.ome.tif", "slide.tif"), may_change=changeable, resumes=True
    )
    if ": slide " in what and "--overwrite" in more:  # another slide, which is translated afresh
        case.verify = lambda code: _same_as_afresh(folder, code, [*arguments[:3], "afresh/out.ome.tif", *arguments[4:]])
    else:
        case.verify = lambda code: _same_as_reference(folder, code, stock.wide_reference)
    return case


def _same_as_afresh(folder: Path, code: int, command: list[str]) -> str:
    from kin_cli.commands.main import run

    if code != 0:
        return ""
    (folder / "afresh").mkdir()
    if run(command) != 0 or digest(folder / "afresh" / "out.ome.tif") != digest(folder / "out.ome.tif"):
        return "WRONG BYTES: the output differs from that of a run without earlier work"
    return ""


def _same_as_reference(folder: Path, code: int, wanted: str) -> str:
    if code == 0 and digest(folder / "out.ome.tif") != wanted:
        return "WRONG BYTES: the output differs from that of an uninterrupted run"
    return ""


def _spoil(rng: random.Random, work: Path, folder: Path) -> str:
    """Change one thing in or about a work folder, and return in words what."""
    kind = rng.choice(
        ("file",) * 8 + ("foreign", "foreign", "folder is link", "folder is file", "folder is fifo", "empty", "slide")
    )
    if kind == "file":
        return _replace(rng, rng.choice(sorted(work.iterdir())), folder)
    if kind == "foreign":
        name = rng.choice(
            ("notes.txt", ".hidden", "slide.tif", "claims", "a/b.txt", "x-0.dat.bak", "fingerprint.json~", "tiles")
        )
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_bytes(b"mine")
        return f"a foreign file {name}"
    if kind == "slide":
        return f"slide {_replace(rng, folder / 'slide.tif', folder)}"
    if kind == "empty":
        for path in work.iterdir():
            path.unlink()
        return kind
    if kind == "folder is link":
        target = rng.choice(("mine", ".", "nowhere", "moved", "out.ome.tif.kin-work"))
        if target == "moved":
            work.rename(folder / "moved")
        else:
            shutil.rmtree(work)
        work.symlink_to(target)
        return f"{kind} to {target}"
    shutil.rmtree(work)
    if kind == "folder is fifo":
        os.mkfifo(work)
    else:
        work.write_bytes(b"mine")
    return kind


def _replace(rng: random.Random, file: Path, folder: Path) -> str:
    kind = rng.choice(
        ("junk", "damage", "damage", "link", "dangling", "loop", "fifo", "folder", "gone", "full folder", "unreadable")
    )
    content = file.read_bytes()
    if kind == "damage":
        kind, content = damaged(content, rng)
        file.write_bytes(content)
        return f"{file.name} after {kind}"
    if kind != "unreadable":
        file.unlink()
    if kind == "junk":
        file.write_bytes(rng.choice(_JUNK))
    elif kind == "unreadable":
        file.chmod(0)
    elif kind in ("link", "dangling", "loop"):
        target = {"link": folder / USERS_FILE, "dangling": folder / "new.txt", "loop": file}[kind]
        file.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind.endswith("folder"):
        file.mkdir()
        if kind == "full folder":
            (file / "mine.txt").write_bytes(b"mine")
    return f"{file.name} is {kind}"


def claims(rng: random.Random, folder: Path, stock: Stock) -> Case:
    """Continue work with another claim on it."""
    shutil.copytree(stock.folder / "work" / rng.choice(STAGES), folder, dirs_exist_ok=True)
    work = folder / "out.ome.tif.kin-work"
    own = json.loads((work / "claim-0").read_bytes())
    live = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(), "job": "", "restarts": 0}
    contents: dict[str, object] = {
        "dead": own,
        "alive": live,
        "another start": {**live, "started": "x/1"},
        "pid 0": {**live, "pid": 0},
        "pid -1": {**live, "pid": -1},
        "pid 1": {**live, "pid": 1},
        "pid huge": {**live, "pid": 1 << 70},
        "pid text": {**live, "pid": "abc"},
        "pid float": {**live, "pid": 1e300},
        "pid null": {**live, "pid": None},
        "foreign": {**own, "host": "elsewhere"},
        "host null": {**own, "host": None},
        "restarts": {**own, "restarts": "x"},
        "list": [1],
        "nested": "[" * 1000,
    }
    name = rng.choice(sorted(contents))
    path = work / rng.choice(("claim-0", "claim-0", "claim-measure-1-of-2", "claim.lock", "claim-", "claim-x\n"))
    path.write_text(json.dumps(contents[name]))
    what = f"{path.name!r} {name}"
    kind = rng.choice(("file",) * 4 + ("damage", "junk", "fifo", "folder", "link", "dangling"))
    if kind != "file":
        path.write_bytes(damaged(path.read_bytes(), rng)[1] if kind == "damage" else rng.choice(_JUNK))
    if kind in ("fifo", "folder", "link", "dangling"):
        path.unlink()
        (folder / USERS_FILE).write_bytes(b"mine")
        makers: dict[str, Callable[[], object]] = {
            "fifo": lambda: os.mkfifo(path),
            "folder": path.mkdir,
            "link": lambda: path.symlink_to(folder / USERS_FILE),
            "dangling": lambda: path.symlink_to(folder / "new.txt"),
        }
        makers[kind]()
    age = rng.choice((0, 0, 30, 599, 700, 1e6, -1e6, -1e9))
    os.utime(path, (time.time() - age,) * 2, follow_symlinks=False)
    more = rng.choice(([], [], ["--overwrite"], ["--pass", "measure", "--shard", "1/2"]))
    arguments = ["translate", "slide.tif", "-o", "out.ome.tif", *stock.translate, *more]
    case = Case(f"{what} {kind}, {age} s old {' '.join(more)}", arguments, ("out.ome.tif",), resumes=True)
    case.may_change = r"out\.ome\.tif\.kin-work(/[^/]*)?"
    if "--pass" in more:
        case.output, case.may_appear = None, case.may_change
    else:
        case.verify = lambda code: _claim_verdict(
            folder, code, stock, name if kind == "file" and path.name == "claim-0" else ""
        )
    return case


def _claim_verdict(folder: Path, code: int, stock: Stock, name: str) -> str:
    if name == "alive" and code == 0:
        return "the claim of a live process was taken over"
    if name in ("dead", "another start") and code != 0:
        return "the claim of a dead process was not taken over"
    return _same_as_reference(folder, code, stock.wide_reference)


def _started() -> str:
    from kin_cli.store.claim import _start_of

    return _start_of(os.getpid())


def outputs(rng: random.Random, folder: Path, stock: Stock) -> Case:
    """An output that exists, with a record or a table that was changed; and files of others under its names."""
    ending = rng.choice((".ome.tif", ".tif", ".png", ".jpg"))
    output = f"out{ending}"
    stock.copy("slide.tif", folder / "slide.tif")
    whose = rng.choice(("done", "done", "users", "none"))
    record, report = f"{output}.json", f"{output}.report.html"
    if whose == "done":
        stock.copy(f"done{ending}", folder / output)
        text = (stock.folder / f"done{ending}.json").read_text().replace(f"done{ending}", output)
        content = damaged(text.encode(), rng)[1] if rng.random() < 0.5 else rng.choice((text.encode(), *_JUNK))
        (folder / record).write_bytes(content)
    elif whose == "users":
        for name in rng.sample((output, record, report), rng.randrange(1, 4)):
            (folder / name).write_bytes(rng.choice((b'{"cases": []}', b"<html></html>", b"", b'{"kin": 1}')))
    more = rng.choice((["--skip-existing"], ["--skip-existing"], [], ["--report"], ["--table", "table"]))
    if "--table" in more:
        shutil.copytree(stock.folder / "table", folder / "table")
        whose += ", " + _replace(rng, rng.choice(sorted((folder / "table").iterdir())), folder)
    inputs = rng.choice(([], [], [("-m", record)], [("--tissue", record)]))
    arguments = ["translate", "slide.tif", "-o", output, *stock.translate, *more]
    for option, name in inputs:
        stock.copy("tiny.pth" if option == "-m" else "mask.png", folder / name)
        arguments += [option, name]
    if rng.random() < 0.2:
        arguments.append("--overwrite")
    names = (output, "table", "slide.tif")
    case = Case(f"{whose}, {' '.join(arguments[len(stock.translate) + 4 :])}", arguments, names, output)
    overwritten = "--overwrite" in arguments and not inputs
    case.may_change = rf"table(/[^/]*)?|{output}(\.json|\.report\.html)?" if overwritten else r"table(/[^/]*)?"
    case.may_appear = r"table/.*"
    return case


def streams(rng: random.Random, folder: Path, stock: Stock) -> Case:
    """A command whose standard streams are closed, full, slow or without a reader."""
    command = rng.choice(("translate", "translate", "json", "info", "check", "dry", "help", "wrong"))
    stock.copy("done.png", folder / "sound.png")
    arguments = {
        "translate": ["translate", str(stock.slide), "-o", "out.ome.tif", *stock.translate],
        "json": ["translate", str(stock.slide), "-o", "out.ome.tif", *stock.translate, "--json"],
        "info": ["info", str(stock.slide)],
        "check": ["check", "sound.png"],
        "dry": ["translate", str(stock.slide), "-o", "out.ome.tif", *stock.translate, "--dry-run"],
        "help": ["translate", "--help"],
        "wrong": ["translate", "missing.tif", "-o", "out.ome.tif"],
    }[command]
    writes = command in ("translate", "json")
    case = Case(command, arguments, output="out.ome.tif" if writes else None)
    if rng.random() < 0.3:
        case.shell = rng.choice(
            (
                ">&-",
                "2>&-",
                ">&- 2>&-",
                "<&- >&- 2>&-",
                ">/dev/full",
                "2>/dev/full",
                "{} | true",
                "{} 2>&1 | true",
                "{} | head -c 1",
            )
        )
        case.what += f" {case.shell}"
    else:
        case.closed = rng.choice(((), (1,), (2,), (1, 2), (0, 1, 2)))
        for number in set(rng.choice(((), (1,), (2,), (1, 2)))) - set(case.closed):
            case.to_device[number] = "/dev/full"
        case.what += f" closed {case.closed}, full {sorted(case.to_device)}"
    if writes:
        case.verify = lambda code: (
            f"exit code {code}, but the streams are not the result"
            if code
            else _same_as_reference(folder, 0, stock.reference)
        )
    return case
