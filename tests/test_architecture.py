"""The house rules that a machine can check: imports point down, heavy modules stay out of light ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "kin_cli"
LAYERS = [
    {"errors", "geometry", "concurrency", "progress"},
    {"signals", "store"},
    {"slide", "norm", "pyramid"},
    {"models", "metrics"},
    {"passes"},
    {"settings"},
    {"plan", "sample"},
    {"job"},
    {"translate", "evaluation"},
    {"training"},
    {"report"},
    {"batch", "bench", "figures"},
    {"commands"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ONLY_IN = {"click": "commands", "tqdm": "commands", "openslide": "slide"}
TORCH_FREE = ("slide", "pyramid", "concurrency", "progress", "signals", "store", "commands")


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """Imported modules, and whether the import runs when the module is imported."""
    tree = ast.parse(path.read_text())
    found = []

    def visit(node: ast.AST, at_import: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                if child.module == "kin_cli":
                    found.extend((f"kin_cli.{alias.name}", at_import) for alias in child.names)
                else:
                    found.append((child.module, at_import))
            guarded = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            inner = at_import and not guarded and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            visit(child, inner)

    visit(tree, True)
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = unit(path)
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] in ONLY_IN:
            assert here == ONLY_IN[parts[0]], f"{parts[0]} belongs in {ONLY_IN[parts[0]]} only"
        if parts[0] != "kin_cli" or parts[1] in ("__version__", here):
            continue
        assert RANK[parts[1]] < RANK[here] or {parts[1], here} <= {"models"}, f"{here} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_light_packages_do_not_import_torch(path: Path) -> None:
    if unit(path) in TORCH_FREE:
        assert not [name for name, at_import in imports(path) if at_import and name.split(".")[0] == "torch"]


def test_help_loads_neither_torch_nor_slides() -> None:
    code = (
        "import sys; from kin_cli.commands.main import cli; cli(['--help'], standalone_mode=False);"
        "print([m for m in ('torch', 'numpy', 'openslide', 'scipy', 'tqdm', 'matplotlib') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.rstrip().endswith("[]")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500
