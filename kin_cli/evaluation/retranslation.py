"""A sample of a finished translation, translated again on the patch grid and on one that is shifted by half a patch.

The finished file tells slide, generator and settings. At some places of 2 × 2 patches with tissue, drawn at random, the
same pixels are translated on both grids, by every method asked for:

``in``        every patch by its own statistics, as ``--method in --paper``
``kin``       the smoothed table, in windows of one patch without a halo, as ``--paper``
``seamless``  the same table, interpolated, with a halo, as ``--seamless``

For ``kin`` and ``seamless`` the patches around a place are measured as far as the kernel reaches.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kin_cli.concurrency import available_cores
from kin_cli.errors import InputError, NoTissueError, UsageError
from kin_cli.evaluation.consistency import Differences, Mismatch
from kin_cli.geometry import Box, Cell, Pixels
from kin_cli.models.named import shelf
from kin_cli.norm.kernel import Kernel
from kin_cli.norm.lookup import Lookup
from kin_cli.norm.table import SmoothedTable, StatTable
from kin_cli.passes.alone import alone
from kin_cli.passes.apply import statistics_of
from kin_cli.passes.engine import EnginePool, Execution
from kin_cli.passes.measure import measure_slide
from kin_cli.passes.windows import Window
from kin_cli.plan import Plan, make_plan
from kin_cli.progress import Progress
from kin_cli.pyramid.provenance import Provenance
from kin_cli.settings import ComputeSettings, NormSettings, OutputSettings, Settings, SourceSettings, TrustSettings
from kin_cli.slide.stain import METHODS as STAIN_METHODS
from kin_cli.store.blobs import BlobStore
from kin_cli.store.files import file_sha256

METHODS = ("in", "kin", "seamless")
_SIDE = 2  # patches along a place
_LEAST_TISSUE = 0.5  # of a place
_TWO_FILES = "--shifted compares with a second translation, whatever made it"


@dataclass(frozen=True)
class Retranslation:
    """What to translate again.

    Attributes:
        source, model: the slide and the generator; None to take those that the finished file names.
        methods: some of ``METHODS``.
        places: number of places of 2 × 2 patches.
        seed: of the choice of places.
        tissue: "auto" for the mask that the translation was made with, "none", or a mask's file.
        device: as in ``ComputeSettings``.
        workers: number of threads; None for all cores.
    """

    source: Path | None = None
    model: Path | None = None
    methods: tuple[str, ...] = METHODS
    places: int = 4
    seed: int = 0
    tissue: str | Path = "auto"
    device: str = "auto"
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise UsageError(f"'{name}' is not a way to translate a sample", f"there are {', '.join(METHODS)}")
        if self.places < 1 or not self.methods:
            raise UsageError("nothing to translate again", "at least one place and one method")


@dataclass(frozen=True)
class Consistency:
    """The mismatch of every method; which one made the finished file, if any; and the places (px of that file)."""

    mismatches: dict[str, Mismatch]
    own: str | None
    boxes: tuple[Box, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the values, ready for JSON."""
        found = {name: mismatch.as_dict() for name, mismatch in self.mismatches.items()}
        boxes = [[box.x, box.y, box.width, box.height] for box in self.boxes]
        return {"mismatch": found, "made_by": self.own, "places": boxes}

    def in_words(self) -> list[str]:
        """A line for every method, under a headline."""
        first = next(iter(self.mismatches.values()))
        side = first.offset[0]
        lines = [
            f"tile mismatch: {len(self.boxes)} places ({first.pixels:,} pixels of tissue) translated again, and with"
            f" patches shifted by {side} px",
            f"  {'':<10}{'mean ΔE':>9}{'99 % below':>12}",
        ]
        for name, found in self.mismatches.items():
            mark = "   as this file" if name == self.own else ""
            lines.append(f"  {name:<10}{found.mean:>9.2f}{found.p99:>12.2f}{mark}")
        return lines

    def rows(self) -> list[list[object]]:
        """The same as rows of a table."""
        head: list[object] = ["method", "mean", "p99", "pixels", "made_this_file"]
        return [head, *([n, m.mean, m.p99, m.pixels, int(n == self.own)] for n, m in self.mismatches.items())]


def measure_consistency(made: Provenance, wanted: Retranslation, progress: Progress) -> Consistency:
    """Translate a sample of a finished translation again; ``made`` is what its file tells.

    Memory bound: that of a translation, see ``Plan.host_bytes``; the tables are in temporary files.

    Raises:
        KinError: slide or generator are not found or others, the file does not tell enough, or the slide is too small.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kin-again-")))
        settings = settings_again(made, wanted, folder)
        plans = []
        for shift in (0, settings.norm.patch_px // 2):
            plan = make_plan(_shifted(settings, made, shift))
            stack.enter_context(plan.identity)
            stack.enter_context(plan.view.slide)
            plans.append(plan)
            if not plan.generator.channels:
                raise UsageError(f"{plan.settings.model_name}: has no InstanceNorm, so no patch differs", _TWO_FILES)
            _check_generator(made, plan)
        places = _places(plans[0], wanted)
        engines = plans[0].engines()
        sides = [
            stack.enter_context(_Side(plan, folder / str(number), shift=number * (settings.norm.patch_px // 2)))
            for number, plan in enumerate(plans)
        ]
        if set(wanted.methods) - {"in"}:
            for side in sides:
                side.measure(places, engines, progress, seamless="seamless" in wanted.methods)
        found = {name: Differences() for name in wanted.methods}
        with progress.stage("translate", len(places) * len(found), "places") as advance:
            for box in places:
                inside = ~plans[0].mask.background(box)
                for name, counted in found.items():
                    one, other = (side.translated(box, name, engines) for side in sides)
                    counted.count(one[inside], other[inside])
                    advance(1)
        offset = (settings.norm.patch_px // 2,) * 2
        return Consistency({n: c.mismatch(offset) for n, c in found.items()}, _own_method(made), tuple(places))


def settings_again(made: Provenance, wanted: Retranslation, folder: Path) -> Settings:
    """The settings of the finished file, as ``--seamless`` with its kernel; nothing is written to ``folder``."""
    slide = wanted.source or _slide_of(made)
    method, kernel = made.value("method"), str(made.value("kernel") or "")
    if made.patch_px is None or not isinstance(method, str):
        raise InputError(f"{made.file}: does not tell how it was made", _TWO_FILES)
    if made.value("network") is not None:
        raise UsageError(f"{made.file}: was made by a network of one's own, which no file tells of", _TWO_FILES)
    stain = str(made.value("stain match") or "").split(" ")[0]
    measured = made.value("measured size")
    smooth = method == "kin" and kernel != "1"
    norm = NormSettings(
        kernel=Kernel.parse(kernel) if smooth else None,
        patch_px=made.patch_px,
        measure_px=measured if smooth and measured != made.patch_px else None,
        correction=made.value("correction") or 0,
        eps=made.value("eps"),
    )
    source = SourceSettings(
        slide,
        level=made.level,
        mpp=made.mpp,
        source_mpp=made.source_mpp,
        series=made.series,
        tissue=_tissue_of(made, wanted),  # type: ignore[arg-type]  # one of the two words, or a path
        stain_match=next((name for name in STAIN_METHODS if name == stain), None),
    )
    return Settings(
        source,
        wanted.model or _generator_of(made),
        OutputSettings(folder / "again.tif"),
        norm,
        ComputeSettings(wanted.device, workers=wanted.workers or available_cores()),
        entry=made.value("entry"),
        model_norm=made.value("norm"),
        trust=TrustSettings(enabled=False),
    )


def _shifted(settings: Settings, made: Provenance, shift: int) -> Settings:
    """The settings for the region that begins ``shift`` px further right and down."""
    region = made.region
    if shift:
        width, height = made.value("width"), made.value("height")
        if region is None and not (isinstance(width, int) and isinstance(height, int)):
            raise InputError(f"{made.file}: does not tell how large it was made", _TWO_FILES)
        whole = region or Box(0, 0, width, height)
        if min(whole.width, whole.height) <= 2 * shift:
            raise InputError(f"{made.file}: is smaller than two patches of {2 * shift} px", "there is no other grid")
        region = Box(whole.x + shift, whole.y + shift, whole.width - shift, whole.height - shift)
    return replace(settings, source=replace(settings.source, region=region))


def _slide_of(made: Provenance) -> Path:
    """The slide that a file was made from: where its record says, or beside the file."""
    named = [] if made.record is None else [Path(str(made.record.get("slide", "")))]
    for path in (*named, made.file.with_name(made.slide)):
        if path.is_file() and made.is_from(path):
            return path
    raise InputError(f"{made.file}: its slide {made.slide} is not found", "name it with --source")


def _generator_of(made: Provenance) -> Path:
    """The generator that a file was made by: where its record says, beside the file, or one with a name."""
    digest = made.value("model sha256")
    named = [] if made.record is None else [Path(str(made.record.get("model", "")))]
    named += [made.file.with_name(path.name) for path in named]
    for path in (*named, *shelf()[0].values()):
        if path.is_file() and file_sha256(path) == digest:
            return path
    raise InputError(f"{made.file}: its generator is not found", "name its file with --model")


def _check_generator(made: Provenance, plan: Plan) -> None:
    if plan.generator.sha256 != made.value("model sha256"):
        raise InputError(f"{plan.settings.model_name}: is not the generator that made {made.file}", _TWO_FILES)


def _tissue_of(made: Provenance, wanted: Retranslation) -> str | Path:
    if wanted.tissue != "auto":
        return wanted.tissue
    told = str(made.value("tissue") or "auto")
    if told in ("auto", "none"):
        return told
    raise InputError(f"{made.file}: was made with the mask {told.split(' (sha256')[0]}", "name it with --tissue")


def _own_method(made: Provenance) -> str | None:
    """Which of the methods made the file; None if it was none of them."""
    method, halo, how = made.value("method"), made.value("halo"), made.value("interpolation")
    if method == "in":
        return "in" if made.value("window") == made.patch_px and not halo else None
    if method != "kin":
        return None
    if how == "nearest" and not halo and made.value("window") == made.patch_px:
        return "kin"
    return "seamless" if how == "bilinear" and halo else None


def _places(plan: Plan, wanted: Retranslation) -> list[Box]:
    """Random places of 2 × 2 whole patches, or of one in small slides, mostly tissue and apart from each other."""
    grid, weights = plan.grid, plan.weights
    for side in (_SIDE, 1):
        rows, cols = (n // grid.step - side + 1 for n in (grid.size.height, grid.size.width))
        found = [
            (row, col)
            for row in range(1, max(rows, 1))
            for col in range(1, max(cols, 1))
            if weights[row : row + side, col : col + side].mean() >= _LEAST_TISSUE
        ]
        order = np.random.default_rng(wanted.seed).permutation(len(found))
        kept: list[tuple[int, int]] = []
        for row, col in (found[number] for number in order):
            if len(kept) < wanted.places and all(max(abs(row - r), abs(col - c)) >= side for r, c in kept):
                kept.append((row, col))
        if kept:
            step = grid.step
            return [Box(col * step, row * step, side * step, side * step) for row, col in sorted(kept)]
    raise NoTissueError(
        f"{plan.settings.source.slide}: no patch with tissue that a shifted grid covers, too",
        "it begins half a patch further: at least 2 × 2 whole patches are needed",
    )


class _Side:
    """One of the two grids: its table of statistics, and places translated on it."""

    def __init__(self, plan: Plan, folder: Path, *, shift: int) -> None:
        self._plan, self._shift = plan, shift
        self._patch = plan.settings.norm.patch_px
        folder.mkdir()
        self._store = BlobStore(folder, "table", capacity=len(plan.grid))
        grid = plan.grid
        self._table = StatTable(self._store, rows=grid.rows, cols=grid.cols, channels=plan.generator.channels)
        self._kernel = plan.settings.norm.effective_kernel
        self._statistics: SmoothedTable | None = None

    def __enter__(self) -> _Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def measure(self, places: Sequence[Box], engines: EnginePool, progress: Progress, *, seamless: bool) -> None:
        """Measure the patches that the smoothed statistics of all places need."""
        plan, grid, needed = self._plan, self._plan.grid, set[Cell]()
        reach = self._kernel.radius + (1 if seamless else 0)
        for box in places:
            cells = list(self._cells(box))
            rows = range(max(0, cells[0].row - reach), min(grid.rows, cells[-1].row + reach + 1))
            cols = range(max(0, cells[0].col - reach), min(grid.cols, cells[-1].col + reach + 1))
            needed |= {Cell(row, col) for row in rows for col in cols if plan.table_weights[row, col] > 0}
        execution = Execution(engines, plan.batch, plan.workers, progress)
        side = plan.settings.norm.measured_px
        measure_slide(plan.view, grid, sorted(needed), self._table, side_px=side, execution=execution)
        self._statistics = SmoothedTable(self._table, plan.table_weights, self._kernel, prior=plan.prior)

    def translated(self, box: Box, method: str, engines: EnginePool) -> Pixels:
        """A place (px of the finished file) by one of the methods."""
        own = box.shifted(-self._shift, -self._shift)
        canvas = np.empty((box.height, box.width, 3), np.uint8)
        for cell in self._cells(box):
            patch = self._plan.grid.box(cell)
            part = patch.intersection(own)
            canvas[part.slices(own)] = self._patch_by(cell, patch, method, engines)[part.slices(patch)]
        return canvas

    def _patch_by(self, cell: Cell, patch: Box, method: str, engines: EnginePool) -> Pixels:
        if method == "in":
            return alone(engines.first, self._plan.view.read(patch))[1]
        halo = self._plan.halo_px if method == "seamless" else 0
        lookup = Lookup(self._patch, halo, "bilinear" if method == "seamless" else "nearest")
        window = Window(cell, 1, 1, patch, halo)
        assert self._statistics is not None
        stats = statistics_of(self._statistics, window, lookup)
        return engines.first.apply([self._plan.view.read(window.read)], stats[None], lookup)[0]

    def _cells(self, box: Box) -> list[Cell]:
        """The patches of this grid that a place overlaps."""
        return list(self._plan.grid.cells_in(box.shifted(-self._shift, -self._shift)))
