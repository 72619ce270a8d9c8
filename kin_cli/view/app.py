"""The page of ``kin view``: its files, its tiles and what is found out about the slides, as a web app or a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kin_cli import __version__
from kin_cli.concurrency import available_cores, prefetch
from kin_cli.errors import OutputError
from kin_cli.progress import Progress
from kin_cli.store.files import os_errors_as_output_errors, sync_folder
from kin_cli.view.findings import Findings
from kin_cli.view.http import OPENSEADRAGON, Refusal, Reply, Request, openseadragon, page_file
from kin_cli.view.layers import Layer
from kin_cli.view.pictures import TileCache, encoded

PAGE_FILES = ("page.css", "panes.js", "viewer.js")
_TILE = re.compile(r"tiles/(\d{1,3})/(\d{1,3})/(\d{1,7})_(\d{1,7})(\.jpg|\.png)", re.ASCII)
_KEEP_SECONDS = 3600


class ViewApp:
    """Serves the page of some layers; thread-safe. ``lossless``: tiles as PNG instead of JPEG.

    Memory bound: that of the slides and of ``TileCache``, 8 MiB per core, and that of ``Findings``.
    """

    def __init__(self, layers: Sequence[Layer], *, lossless: bool = False) -> None:
        self._layers = list(layers)
        self._kind = ".png" if lossless else ".jpg"
        self._tiles = TileCache()
        self.findings = Findings(self._layers)
        self._files = page_files()

    def answer(self, request: Request) -> Reply:
        """See ``App.answer``."""
        if request.method != "GET":
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED)
        path = request.path
        if path in self._files:
            return Reply(self._files[path], Path(path).suffix or ".html", keep=_KEEP_SECONDS if path else 0)
        if path == "layers.js":
            return Reply(layers_script(self._layers, kind=self._kind, live=True), ".js")
        try:
            if found := _TILE.fullmatch(path):
                number, level, col, row = map(int, found.groups()[:4])
                return Reply(self.tile(number, level, col, row, found[5]), found[5], keep=_KEEP_SECONDS)
            if path.startswith("findings/") and path.endswith(".json"):
                name = path.removeprefix("findings/").removesuffix(".json")
                return Reply(json.dumps(self.findings.state(name)).encode(), ".json")
        except LookupError:
            pass
        raise Refusal(HTTPStatus.NOT_FOUND)

    def tile(self, number: int, level: int, col: int, row: int, kind: str) -> bytes:
        """An encoded tile of a layer; levels count from the coarsest. ``LookupError`` if there is none."""
        picture = self._layers[number].picture
        finer = len(picture.levels) - 1 - level
        picture.box(finer, col, row)

        if kind == ".jpg" and (stored := picture.jpeg(finer, col, row)) is not None:
            return stored

        def make() -> bytes:
            return encoded(picture.tile(finer, col, row), kind)

        return self._tiles.get((number, finer, col, row, kind), make)

    def close(self) -> None:
        """End what is computed in the background."""
        self.findings.close()


def page_files() -> dict[str, bytes]:
    """The files of the page by their paths; the page itself has the path "". Raises ``KinError`` without a viewer."""
    return {
        "": page_file("view", "index.html"),
        OPENSEADRAGON: openseadragon(),
        **{name: page_file("view", name) for name in PAGE_FILES},
    }


def layers_script(layers: Sequence[Layer], *, kind: str, live: bool, findings: dict[str, Any] | None = None) -> bytes:
    """JavaScript that tells the page of its layers; ``live`` if a server computes findings when they are asked for."""
    content = {
        "kin": __version__,
        "live": live,
        "kind": kind,
        "layers": [layer.as_dict() for layer in layers],
        "findings": findings or {},
    }
    return b"window.KIN = " + json.dumps(content).replace("<", "\\u003c").encode() + b";\n"


def export(
    layers: Sequence[Layer], folder: Path, *, lossless: bool, seams: bool, progress: Progress, workers: int | None
) -> int:
    """Write a static copy of the page to a new ``folder``, which opens from a disk or any web server.

    Returns the number of tiles. The folder gets its name when it is complete.

    Memory bound: that of the slides, and 16 MiB per worker.

    Raises:
        OutputError: the folder exists and is not empty, or cannot be written.
    """
    kind, app = (".png" if lossless else ".jpg"), ViewApp(layers, lossless=lossless)
    translations = [number for number, layer in enumerate(layers) if layer.role == "translation"]
    names = ["tissue", *(f"trust/{number}" for number in translations)]
    if seams:
        names += [f"seams/{number}" for number in translations]

    def fill(draft: Path) -> int:
        written = 0
        for number, layer in enumerate(layers):
            written += _write_tiles(layer, draft / "tiles" / str(number), kind, progress, workers or available_cores())
        made = {name: app.findings.now(name, progress) for name in names}
        findings = {name: found for name, found in made.items() if not (name.startswith("trust") and "error" in found)}
        for path, content in app_files(layers, kind, findings).items():
            (draft / path).write_bytes(content)
        return written

    return new_folder(folder, fill)


def app_files(layers: Sequence[Layer], kind: str, findings: dict[str, Any]) -> dict[str, bytes]:
    """The files of a static copy beside its tiles, by name."""
    files = page_files()
    files["index.html"] = files.pop("")
    return {**files, "layers.js": layers_script(layers, kind=kind, live=False, findings=findings)}


def new_folder(folder: Path, fill: Callable[[Path], int]) -> int:
    """Make a folder that appears complete or not at all: ``fill`` writes into a draft beside it; returns its result.

    Raises:
        OutputError: the folder exists and is not empty, its parent does not exist, or writing fails.
    """
    with os_errors_as_output_errors(folder):
        if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
            raise OutputError(f"{folder}: exists already", "name a new folder")
        if not folder.parent.is_dir():
            raise OutputError(f"{folder.parent}: no such folder", "create it, or choose another place")
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}.", suffix=".tmp", dir=folder.parent))
        try:
            draft.chmod(0o777 & ~_umask())
            result = fill(draft)
            draft.replace(folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    return result


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _write_tiles(layer: Layer, folder: Path, kind: str, progress: Progress, workers: int) -> int:
    picture = layer.picture
    count = sum(cols * rows for cols, rows in map(picture.grid, range(len(picture.levels))))
    for level in range(len(picture.levels)):
        (folder / str(level)).mkdir(parents=True)
    write = partial(_write_tile, layer, folder, kind)
    with progress.stage(layer.name, count, "tiles") as advance:
        for _ in prefetch(write, picture.places(), workers=workers, ahead=2 * workers):
            advance(1)
    return count


def _write_tile(layer: Layer, folder: Path, kind: str, tile: tuple[int, int, int]) -> None:
    level, col, row = tile
    picture = layer.picture
    name = f"{len(picture.levels) - 1 - level}/{col}_{row}{kind}"
    stored = picture.jpeg(level, col, row) if kind == ".jpg" else None
    (folder / name).write_bytes(encoded(picture.tile(level, col, row), kind) if stored is None else stored)
