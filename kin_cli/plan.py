"""The plan of a translation: everything opened, checked and sized before any work.

The memory estimates of a network, and the windows and batches chosen from them, are at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from kin_cli import __version__
from kin_cli.concurrency import available_cores
from kin_cli.errors import NoTissueError, OutputError, UsageError
from kin_cli.geometry import Cell, Floats, Grid, Mask
from kin_cli.known import reference_of, stain_match_of
from kin_cli.memory import memory_limit
from kin_cli.models.checkpoint import Generator, load_generator
from kin_cli.models.named import FULL_RANGE
from kin_cli.models.own import load_network
from kin_cli.models.reference import Reference
from kin_cli.norm.gpu import why_not
from kin_cli.norm.lookup import Lookup
from kin_cli.outputs import check_outputs
from kin_cli.passes.budget import activation_bytes, auto_batch, auto_window
from kin_cli.passes.devices import Precision, ready_devices, resolve_precision
from kin_cli.passes.engine import Engine, EnginePool
from kin_cli.passes.measure import thumbnail_of
from kin_cli.passes.windows import BLEND_PX, WindowGrid
from kin_cli.pyramid.codec import Codec
from kin_cli.pyramid.levels import Blocks, PyramidLayout, fit_blocks
from kin_cli.settings import Settings, SourceSettings, border_warning
from kin_cli.slide.files import SlideIdentity
from kin_cli.slide.open import open_source
from kin_cli.slide.stain import StainMatch, matched
from kin_cli.slide.tissue import TissueMask, tissue_mask
from kin_cli.slide.view import SlideView, overview
from kin_cli.store.files import bytes_text, file_sha256, os_errors_as_output_errors

_PRIOR = 0.01  # relative to a kernel full of tissue: 1 % of the statistics inside tissue, most of them around dust
_BASE_BYTES = 600 << 20  # interpreter, torch and the image libraries with their caches, measured on Linux
_DISK_BYTES_PER_PIXEL = {"jpeg": 0.4, "deflate": 3.0}  # pyramid included, all tissue, rounded up
_ONE_COLOUR_RANGE = 2  # grey levels, as compression leaves them in a picture of one colour
_MAX_PIXELS = 1 << 40  # a hundred times the largest slides; more than that means a wrong pixel size


@dataclass(frozen=True)
class Plan:
    """A translation with everything opened and decided, made by ``make_plan``. Close ``view.slide`` when done."""

    settings: Settings
    generator: Generator
    view: SlideView
    mask: TissueMask
    devices: tuple[torch.device, ...]
    precision: Precision
    halo_px: int
    window_px: int
    batch: int
    workers: int
    identity: SlideIdentity
    reference: Reference | None = None  # for the trust map; None: none is made
    stain_match: StainMatch | None = None

    @property
    def device(self) -> torch.device:
        """The first device; all are of one kind."""
        return self.devices[0]

    @property
    def compiled(self) -> bool:
        """Whether Triton kernels run between the convolutions, which are compiled within seconds, once per machine."""
        choice = self.settings.compute.compile
        return self.device.type == "cuda" and (choice == "on" or (choice == "auto" and why_not() is None))

    def engines(self) -> EnginePool:
        """Load the generator onto every device."""
        return EnginePool(
            [
                Engine(
                    self.generator,
                    device=device,
                    precision=self.precision,
                    correction=self.settings.norm.correction,
                    eps=self.settings.norm.eps,
                    kernels=self.compiled,
                    batch=self.batch,
                )
                for device in self.devices
            ]
        )

    @cached_property
    def grid(self) -> Grid:
        """The patch grid over the output image."""
        return Grid(self.view.size, self.settings.norm.patch_px)

    @cached_property
    def weights(self) -> Floats:
        """Tissue fraction of every patch, (rows, cols); 1 everywhere without a tissue mask."""
        if not self._masked:
            return np.ones((self.grid.rows, self.grid.cols), np.float32)
        return self.mask.fraction(self.grid)

    @cached_property
    def table_weights(self) -> Floats:
        """Weight in the kernel of every patch, (rows, cols): tissue fraction of its measured part; 0: not measured."""
        norm = self.settings.norm
        if norm.measured_px == norm.patch_px or not self._masked:
            return self.weights
        return self.mask.fraction(self.grid, side=norm.measured_px)

    @property
    def prior(self) -> float:
        """Weight of the slide's mean statistics, for kernels that find hardly any tissue; see ``SmoothedTable``.

        0 if all patches weigh the same, as in the paper, and for kernel 1, which is the network as trained.
        """
        return _PRIOR if self._masked and self.settings.norm.effective_kernel.radius else 0.0

    @cached_property
    def _tissue_id(self) -> str:
        tissue = self.settings.source.tissue
        return _file_id(tissue) if isinstance(tissue, Path) else tissue

    @cached_property
    def _thumbnail_id(self) -> str | None:
        thumbnail = self.settings.norm.thumbnail
        return None if thumbnail is None else _file_id(thumbnail)

    @property
    def leaves_out(self) -> bool:
        """Whether patches below the threshold are not translated."""
        return self.reference is not None and self.settings.trust.leave_out

    @property
    def _masked(self) -> bool:
        tissue = self.settings.source.tissue
        return tissue != "none" and (tissue != "auto" or self.view.slide.expects_background)

    @cached_property
    def blocks(self) -> Blocks:
        """Sides of tiles and blocks that fit the window."""
        return fit_blocks(self.window_px, self.view.size)

    @cached_property
    def layout(self) -> PyramidLayout:
        """Levels and tiles of the output; an image without a pyramid has one level."""
        flat_side = max(self.view.size.width, self.view.size.height) + 1
        tile = self.blocks.tile
        if self.settings.output.flat:
            return PyramidLayout(self.view.size, tile, min_side=flat_side)
        return PyramidLayout(self.view.size, tile)

    @cached_property
    def windows(self) -> WindowGrid:
        """The windows of pass 2."""
        return self.windows_of(self.weights > 0)

    def windows_of(self, selected: Mask) -> WindowGrid:
        """The windows of pass 2 if it translates the ``selected`` patches, (rows, cols)."""
        fades = self.settings.output.background == "fill" and self.settings.source.tissue == "auto"
        return WindowGrid(
            self.grid,
            self.layout.grid(0),
            selected,
            window_px=self.window_px,
            block_px=self.blocks.block,
            halo_px=self.halo_px,
            blend_px=min(BLEND_PX, self.grid.step) if fades else 0,  # a user's mask may end within tissue
            # on a GPU all batches have one shape, and so one order of summation
            shape="whole" if self.device.type == "cuda" else "tight" if self.halo_px else "clipped",
        )

    @property
    def lookup(self) -> Lookup:
        """The interpolation of the table in windows."""
        norm = self.settings.norm
        return Lookup(norm.patch_px, self.halo_px, norm.effective_interpolation)

    @property
    def codec(self) -> Codec:
        """The encoding of tiles; those of an image without a pyramid stay lossless until it is written."""
        output = self.settings.output
        return Codec("deflate" if output.flat else output.compression, output.quality, output.subsampling)

    @property
    def translated_patches(self) -> int:
        """Number of patches that are translated."""
        return int((self.weights > 0).sum())

    @cached_property
    def measured_cells(self) -> list[Cell]:
        """The patches that pass 1 measures, row by row."""
        if self.settings.norm.method == "tin" or not self.generator.channels:
            return []
        return [Cell(int(row), int(col)) for row, col in np.argwhere(self.table_weights > 0)]

    @property
    def table_bytes(self) -> int:
        """Size of the table's file after pass 1."""
        return len(self.measured_cells) * 8 * self.generator.channels

    @property
    def disk_bytes(self) -> int:
        """Upper estimate of the disk space needed: encoded tiles, the file made of them, partial tiles, the table."""
        encoded = 2 * _DISK_BYTES_PER_PIXEL[self.codec.compression] * self.view.size.pixels
        return int(encoded) + 3 * self.windows.partial_tiles * self.layout.grid(0).step ** 2 + self.table_bytes

    @property
    def host_bytes(self) -> int:
        """Upper estimate of the peak memory of the process; independent of the slide's size.

        Readers and writers hold 4 · workers windows with their statistics and one block of tiles; each device holds up
        to 5 batches. On CPUs the network's activations and weights are added. Photographs, and TIFFs with very large
        tiles or strips, need more (``Slide.memory_bytes``).
        """
        side = self.window_px + 2 * self.halo_px
        reach = 2 * self.settings.norm.effective_kernel.radius + self.window_px // self.settings.norm.patch_px + 3
        stats = 3 * reach**2 * 8 * self.generator.channels * self.workers
        lanes = len(self.devices)
        queue = (4 * self.workers + 5 * lanes * self.batch) * 3 * side**2 + stats + 3 * self.blocks.block**2
        network = 4 * sum(p.numel() for p in self.generator.module.parameters())
        if self.device.type == "cpu":
            network += lanes * (network + activation_bytes(self.generator, side, self.precision))
        return _BASE_BYTES + queue + network + self.view.slide.memory_bytes

    def warnings(self) -> list[str]:
        """Messages about the output that the user should read before trusting it."""
        slide = [f"{self.settings.source.slide}: {note}" for note in self.view.slide.notes]
        if self.stain_match is not None and self.stain_match.note is not None:
            slide.append(self.stain_match.note)
        trained, mpp = self.generator.trained_mpp, self.view.mpp
        borders = [] if (told := self.border_warning()) is None else [told]
        if trained is None or mpp is None or abs(math.log(mpp / trained)) < math.log(1.1):
            return [*slide, *self.mask.notes, *borders]
        scale = f"the image has {mpp:.4g} µm/px, the generator was trained at {trained:g}: consider --mpp {trained:g}"
        return [*slide, *self.mask.notes, scale, *borders]

    def border_warning(self) -> str | None:
        """What to say if the settings leave borders between patches, with the flag that removes them; else None."""
        norm, generator = self.settings.norm, self.generator
        if len(self.grid) == 1:
            return None
        stride = generator.stride
        return border_warning(
            norm.method if generator.channels else "tin",  # without InstanceNorm there are no statistics to differ
            norm.effective_interpolation,
            str(norm.effective_kernel),
            halo_px=self.halo_px,
            reach_px=math.ceil(generator.halo / stride) * stride,
        )

    def headline(self) -> str:
        """The plan in one line: size, patches with tissue, method, device, and bounds of memory and disk."""
        norm, devices = self.settings.norm, ", ".join(map(str, self.devices))
        scale = "" if self.view.mpp is None else f" at {self.view.mpp:.4g} µm/px"
        how = norm.method if norm.method == "tin" else f"{norm.method}, kernel {norm.effective_kernel}"
        halo = f"halo {self.halo_px} px" if self.halo_px else "no halo"
        parts = (
            f"{self.view.size} px{scale}, {self.translated_patches} of {len(self.grid)} patches with tissue",
            f"{how}, {halo}; {devices} {self.precision}",
            f"at most {bytes_text(self.host_bytes)} of memory and {bytes_text(self.disk_bytes)} of disk",
        )
        return f"{self.settings.source.slide}: {'; '.join(parts)}"

    def outlook(self) -> dict[str, tuple[int, float]]:
        """The two passes, with the cost of a unit relative to a measured patch; see ``Progress.outlook``."""
        patch, tile = self.settings.norm.patch_px, self.layout.tile
        around = ((self.window_px + 2 * self.halo_px) / self.window_px) ** 2
        cost = around * (tile / patch) ** 2 * (patch / self.settings.norm.measured_px) ** 2
        return {"measure": (len(self.measured_cells), 1.0), "apply": (self.windows.translated_tiles, cost)}

    def notes(self) -> list[str]:
        """What to tell the user before the work: ``warnings``, what loading changed in the generator, scarce memory."""
        notes = [*self.warnings(), *(f"{self.settings.model_name}: {note}" for note in self.generator.notes)]
        if self.device.type == "cuda" and self.settings.compute.compile == "auto" and (why := why_not()):
            notes.append(f"{self.device}: no kernels of its own, which is slower: {why}")
        if self.host_bytes > memory_limit():
            needed, allowed = bytes_text(self.host_bytes), bytes_text(memory_limit())
            notes.append(
                f"may need {needed} of memory, but the machine or the job (its cgroup) has {allowed}, and what takes"
                " more is killed: ask the scheduler for more, or give a smaller --window or --batch-size"
            )
        return notes

    def fingerprint(self) -> dict[str, object]:
        """All settings and inputs that change the bytes of the output, as a JSON object."""
        source, norm, output = self.settings.source, self.settings.norm, self.settings.output
        stat = source.slide.stat()
        return {
            "slide": source.slide.name,
            "slide bytes": stat.st_size,
            "width": self.view.size.width,
            "height": self.view.size.height,
            "level": self.view.level,
            "mpp": self.view.mpp,
            "region": None if source.region is None else list(vars(source.region).values()),
            "tissue": self._tissue_id,
            "model sha256": self.generator.sha256,
            "method": norm.method,
            "kernel": str(norm.effective_kernel),
            "interpolation": norm.effective_interpolation,
            "patch size": norm.patch_px,
            "measured size": norm.measured_px,
            "window": self.window_px,
            "halo": self.halo_px,
            "correction": norm.correction,
            "eps": norm.eps,
            "thumbnail": "squashed" if norm.squash else self._thumbnail_id,
            "device": self.device.type,
            "precision": self.precision,
            "compiled": self.compiled,
            "compression": self.codec.compression,
            "quality": output.quality,
            "subsampling": output.subsampling,
            "icc": output.icc,
            "background": output.background,
            "output": output.path.name,
            "kin": __version__,
            **({} if source.mpp is None else {"resampled": True}),
            **({} if source.source_mpp is None else {"source mpp": source.source_mpp}),
            **({} if source.series is None else {"series": source.series}),
            **({} if self.settings.entry is None else {"entry": self.settings.entry}),
            **({} if self.settings.model_norm is None else {"norm": self.settings.model_norm}),
            **self.generator.facts,
            **({} if self.stain_match is None else {"stain match": self.stain_match.identity}),
            **({"trust below": self.settings.trust.threshold} if self.leaves_out else {}),
        }

    def summary(self) -> dict[str, object]:
        """The numbers of the plan as a JSON object, for ``--dry-run`` and the record."""
        tiles = self.layout.grid(0)
        return {
            "size": [self.view.size.width, self.view.size.height],
            "mpp": self.view.mpp,
            "grid": [self.grid.rows, self.grid.cols],
            "patches": len(self.grid),
            "patches_with_tissue": self.translated_patches,
            "patches_measured": len(self.measured_cells),
            "window_px": self.window_px,
            "halo_px": self.halo_px,
            "tile_px": self.layout.tile,
            "tiles": len(tiles),
            "tiles_translated": self.windows.translated_tiles,
            "levels": len(self.layout.sizes),
            "device": ", ".join(map(str, self.devices)),
            "precision": self.precision,
            "batch_size": self.batch,
            "workers": self.workers,
            "table_bytes": self.table_bytes,
            "memory_bound_bytes": self.host_bytes,
            "memory_limit_bytes": memory_limit(),
            "disk_bytes": self.disk_bytes,
            **({"temporary_bytes": decoded} if (decoded := self.view.slide.temporary_bytes) else {}),
        }


def make_plan(settings: Settings) -> Plan:
    """Open and check everything that a translation needs, so that mistakes raise a ``KinError`` before any work."""
    check_outputs(settings)
    if settings.table is not None and settings.table.exists() and not settings.table.is_dir():
        raise OutputError(f"{settings.table}: is not a folder with a table", "name a folder, new or with a table")
    devices = ready_devices(settings.compute.device)
    plain = settings.network is not None and settings.compute.precision == "auto"
    precision = resolve_precision("fp32" if plain else settings.compute.precision, devices[0])
    if settings.compute.compile == "on" and devices[0].type != "cuda":
        raise UsageError("--compile on makes kernels for an NVIDIA GPU, and the device is none", "leave it out")
    generator = generator_of(settings)
    if settings.table is not None and not generator.channels:
        raise UsageError(
            f"{settings.model_name} has no InstanceNorm, and so no table of statistics",
            "translate it without --table; there is nothing to analyse or to sweep",
        )
    reference = reference_of(settings, channels=generator.channels)
    _check_sides(settings, generator)
    halo, window = _halo_and_window(settings, generator, device=devices[0].type, precision=precision)
    source = settings.source
    view = source_view(source)
    try:
        identity = SlideIdentity(source.slide)  # before pixels are read
        _check_size(view)
        mask = tissue_mask(view, source.tissue)  # of the slide's own colours
        match = stain_match_of(view, settings, reference)
        plan = Plan(
            settings,
            generator,
            view if match is None else matched(view, match),
            mask,
            devices,
            precision,
            halo,
            window,
            batch=settings.compute.batch_size
            or auto_batch(generator, window + 2 * halo, device=devices[0], precision=precision),
            workers=settings.compute.workers or min(8, available_cores()),
            identity=identity,
            reference=reference if settings.makes_trust_map else None,
            stain_match=match,
        )
        _check_tissue(plan)
        if settings.norm.thumbnail is not None:
            thumbnail_of(settings.norm.thumbnail)  # or the work would begin before it is found unreadable
        return _within_memory(plan)
    except BaseException:
        view.slide.close()
        raise


def _halo_and_window(settings: Settings, generator: Generator, *, device: str, precision: Precision) -> tuple[int, int]:
    """Width of the halo, a multiple of the generator's stride, and side of a window, in pixels."""
    wanted, patch_px = settings.norm.wanted_halo_px, settings.norm.patch_px
    halo = generator.halo if wanted is None else wanted
    halo = math.ceil(halo / generator.stride) * generator.stride
    chosen = auto_window(generator, patch_px=patch_px, halo_px=halo, device=device, precision=precision)
    return halo, settings.norm.window_px or chosen


def _within_memory(plan: Plan) -> Plan:
    """The plan with fewer threads, if their number is not the user's and their windows would exceed the memory."""
    while plan.settings.compute.workers is None and plan.workers > 1 and plan.host_bytes > memory_limit():
        plan = replace(plan, workers=plan.workers // 2)
    return plan


def _check_sides(settings: Settings, generator: Generator) -> None:
    """Raise ``UsageError`` if the network cannot take patches, or their measured parts, of the sides asked for."""
    for name, side in (("patch", settings.norm.patch_px), ("measure", settings.norm.measured_px)):
        if side % generator.stride:
            step = math.lcm(4, generator.stride)
            raise UsageError(
                f"{name} size {side} is not a multiple of {generator.stride}",
                f"{generator.architecture} needs that: --{name}-size {math.ceil(side / step) * step}",
            )


def generator_of(settings: Settings) -> Generator:
    """Load the generator of the settings: a file of a known architecture, or a network of one's own."""
    if settings.network is not None:
        return load_network(
            settings.network,
            settings.model,
            entry=settings.entry,
            input_range=settings.input_range,
            patch_px=settings.norm.patch_px,
        )
    assert settings.model is not None
    generator = load_generator(settings.model, entry=settings.entry, norm=settings.model_norm)
    if settings.input_range == FULL_RANGE:
        return generator
    facts: dict[str, object] = {"input range": list(settings.input_range)}
    return replace(generator, input_range=settings.input_range, facts=facts)


def source_view(source: SourceSettings) -> SlideView:
    """Open the slide at the level or resolution of the settings; close ``view.slide`` when done."""
    return open_source(
        source.slide,
        level=source.level,
        mpp=source.mpp,
        source_mpp=source.source_mpp,
        series=source.series,
        region=source.region,
        fill=source.on_read_error == "fill",
    )


def _check_tissue(plan: Plan) -> None:
    """Raise ``NoTissueError`` if there is nothing to translate, or nothing to measure."""
    source = plan.settings.source
    where = str(source.slide) if source.region is None else f"{source.slide}: the region"
    if not plan.translated_patches:
        why = (
            f"the mask {source.tissue} selects nothing of it" if isinstance(source.tissue, Path) else "no tissue in it"
        )
        raise NoTissueError(f"{where}: {why}", "--tissue none translates everything")
    photograph = source.tissue == "auto" and not plan.view.slide.expects_background
    if photograph and np.ptp(overview(plan.view), axis=(0, 1)).max() <= _ONE_COLOUR_RANGE:
        raise NoTissueError(f"{where}: shows a single colour", "--tissue none translates everything")
    if not plan.table_weights.any():
        raise NoTissueError(f"{where}: no tissue in the middle of any patch", "leave out --measure-size")


def _check_size(view: SlideView) -> None:
    """Raise ``UsageError`` if the output would be larger than any slide."""
    if view.size.pixels > _MAX_PIXELS:
        raise UsageError(
            f"{view.slide.path}: {view.size} pixels are too many",
            "perhaps a wrong pixel size: see --mpp and --source-mpp",
        )


def _file_id(path: Path) -> str:
    """Name and checksum of a file: its content may change under the same name."""
    with os_errors_as_output_errors(path):
        return f"{path.name} (sha256 {file_sha256(path)})"
