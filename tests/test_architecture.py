"""The house rules that a machine can check, each with a list of all offenders.

Imports point one way; heavy libraries stay out of light packages; files and functions are of a readable size, and
whatever is public says what it does.
"""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "kin_cli"
LAYERS = [
    {"errors", "geometry", "concurrency", "memory", "progress"},
    {"signals", "store"},
    {"slide", "norm", "pyramid"},
    {"models", "metrics"},
    {"passes"},
    {"settings"},
    {"outputs", "sample"},
    {"known"},
    {"plan"},
    {"job"},
    {"translation", "evaluation", "trust"},
    {"registration"},
    {"training"},
    {"report", "face", "view"},
    {"batch", "bench", "figures", "validation"},
    {"study"},
    {"commands"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ONLY_IN = {"click": "commands", "tqdm": "commands", "openslide": "slide"}
TORCH_FREE = (
    "geometry",
    "errors",
    "concurrency",
    "memory",
    "progress",
    "signals",
    "store",
    "slide",
    "pyramid",
    "commands",
)
HEAVY = ("torch", "numpy", "scipy", "PIL", "openslide", "tifffile", "pyvips", "tqdm", "matplotlib")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 500, 60
MIN_MEDIAN_LINES, MAX_FILES = 110, 216


def trees() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name; a package by its own name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


TREES = trees()


def imports(tree: ast.AST, *, at_import: bool = True) -> Iterator[tuple[str, bool]]:
    """Names of imported modules, and whether the import runs when the module itself is imported."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Import):
            yield from ((alias.name, at_import) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            for alias in child.names:
                name = f"{child.module}.{alias.name}"
                yield (name if name in TREES else child.module), at_import
        guarded = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        later = guarded or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        yield from imports(child, at_import=at_import and not later)


def at_import(name: str) -> set[str]:
    """What is imported together with a module, directly."""
    return {imported for imported, now in imports(TREES[name]) if now}


def reached(start: str) -> Iterator[str]:
    """What is imported together with a module, by whatever way."""
    todo, seen = [start], {start}
    while todo:
        for name in at_import(todo.pop()) - seen:
            seen.add(name)
            yield name
            if name in TREES:
                todo.append(name)


def room(name: str) -> str:
    """The part of the package that a module stands in: ``slide`` of ``kin_cli.slide.view``."""
    return name.split(".")[1] if "." in name else ""


def listed(offenders: Iterable[str]) -> str:
    return "".join(f"\n  {offender}" for offender in offenders)


def test_imports_point_one_way() -> None:
    offenders = [f"{name} stands in no layer" for name in TREES if room(name) and room(name) not in RANK]
    for name, tree in TREES.items():
        for imported in sorted({imported for imported, _ in imports(tree)}):
            here, there = room(name), room(imported)
            ours = imported in TREES and here and there and here != there
            if ours and RANK.get(there, 99) >= RANK.get(here, 99):
                offenders.append(f"{name} imports {imported}")
    graph = {name: at_import(name) & TREES.keys() - {"kin_cli"} for name in TREES if name != "kin_cli"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        offenders.append("a cycle: " + " → ".join(error.args[1]))
    assert not offenders, listed(offenders)


def test_heavy_libraries_stay_where_they_belong() -> None:
    offenders = []
    for name, tree in TREES.items():
        for library in sorted({imported.split(".")[0] for imported, _ in imports(tree)} & ONLY_IN.keys()):
            if room(name) != ONLY_IN[library]:
                offenders.append(f"{name} imports {library}, which belongs in {ONLY_IN[library]}")
        if room(name) in TORCH_FREE and any(imported.split(".")[0] == "torch" for imported in reached(name)):
            offenders.append(f"{name} loads torch")
    code = (
        "import sys; from kin_cli.commands.main import cli; cli(['--help'], standalone_mode=False);"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    offenders += [f"kin --help loads {name}" for name in shown.splitlines()[-1].split()]
    assert not offenders, listed(offenders)


def public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions and classes of a module."""
    for node in tree.body:
        overloaded = "overload" in map(ast.unparse, getattr(node, "decorator_list", ()))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not (node.name.startswith("_") or overloaded):
            yield node


def test_files_and_functions_are_of_a_readable_size_and_say_what_they_do() -> None:
    offenders, lengths = [], []
    for path in sorted(PACKAGE.rglob("*.py")):
        lengths.append(len(path.read_text().splitlines()))
        if lengths[-1] > MAX_FILE_LINES:
            offenders.append(f"{path.relative_to(PACKAGE)} has {lengths[-1]} lines")
    for name, tree in TREES.items():
        if not ast.get_docstring(tree):
            offenders.append(f"{name} has no docstring")
        offenders += [f"{name}.{node.name} has no docstring" for node in public(tree) if not ast.get_docstring(node)]
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    offenders.append(f"{name}.{node.name} has {lines} lines")
    if len(lengths) > MAX_FILES:
        offenders.append(f"there are {len(lengths)} files; {MAX_FILES} are enough")
    if statistics.median(lengths) < MIN_MEDIAN_LINES:
        offenders.append(f"the median file has {statistics.median(lengths)} lines, {MIN_MEDIAN_LINES} are the least")
    assert not offenders, listed(offenders)
