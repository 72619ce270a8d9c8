"""From settings to a plan: everything is opened and checked before any work."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from kin_cli.budget import auto_batch, auto_window
from kin_cli.errors import OutputError, UsageError
from kin_cli.models.checkpoint import load_generator
from kin_cli.passes.devices import resolve_devices, resolve_precision
from kin_cli.pipeline.allocation import keep_freed_memory
from kin_cli.pipeline.stages import available_cores
from kin_cli.plan import Plan
from kin_cli.settings import Settings
from kin_cli.slide.faults import FillingSlide
from kin_cli.slide.mask import TissueMask, all_tissue
from kin_cli.slide.mask_file import load_mask
from kin_cli.slide.opening import open_slide
from kin_cli.slide.tissue import detect_tissue
from kin_cli.slide.view import SlideView, open_view
from kin_cli.store.begin import work_folder

_MAX_PIXELS = 1 << 40  # a hundred times the largest slides; far more is a wrong pixel size


def ready_devices(names: str) -> tuple[torch.device, ...]:
    """The devices of a run, as ``resolve_devices`` reads them, and this process's memory made ready for CPUs.

    To be called before the first thread; see ``keep_freed_memory``.
    """
    devices = resolve_devices(names)
    if devices[0].type == "cpu":
        keep_freed_memory()
    return devices


def make_plan(settings: Settings) -> Plan:
    """Open and check everything that a translation needs; raises before any work what would fail in it."""
    _check_output(settings)
    devices = ready_devices(settings.compute.device)
    precision = resolve_precision(settings.compute.precision, devices[0])
    generator = load_generator(settings.model)
    patch_px = settings.norm.patch_px
    for name, side in (("patch", patch_px), ("measure", settings.norm.measured_px)):
        if side % generator.stride:
            raise UsageError(
                f"{name} size {side} is not a multiple of {generator.stride}", f"{generator.layout} needs that"
            )
    halo = generator.halo if settings.norm.halo_px is None else settings.norm.halo_px
    halo = math.ceil(halo / generator.stride) * generator.stride
    kind = devices[0].type
    window = settings.norm.window_px or auto_window(
        generator, patch_px=patch_px, halo_px=halo, device=kind, precision=precision
    )
    source = settings.source
    slide = open_slide(source.slide, mpp=source.source_mpp)
    if source.on_read_error == "fill":
        slide = FillingSlide(slide)
    try:
        view = open_view(slide, level=source.level, mpp=source.mpp, region=source.region)
        _check_size(view)
        plan = Plan(
            settings,
            generator,
            view,
            _mask(source.tissue, view),
            devices,
            precision,
            halo,
            window,
            batch=settings.compute.batch_size
            or auto_batch(generator, window + 2 * halo, device=devices[0], precision=precision),
            workers=settings.compute.workers or min(8, available_cores()),
        )
        if plan.cells and not plan.table_weights.any():
            raise UsageError(f"{source.slide}: no tissue in the middle of any patch", "leave out --measure-size")
        return plan
    except BaseException:
        slide.close()
        raise


def _mask(tissue: Path | str, view: SlideView) -> TissueMask:
    if isinstance(tissue, Path):
        return load_mask(tissue, view)
    if tissue == "none" or not view.slide.has_glass_by_default:
        return all_tissue(view.size)
    return detect_tissue(view)


def _check_size(view: SlideView) -> None:
    if view.size.pixels > _MAX_PIXELS:
        raise UsageError(
            f"{view.slide.path}: {view.size} pixels are too many",
            "perhaps a wrong pixel size: see --mpp and --source-mpp",
        )


def _check_output(settings: Settings) -> None:
    output = settings.output.path
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder", "create it, or choose another output with -o")
    if output.is_dir():
        raise OutputError(f"{output}: is a folder", "give the output a file name with -o")
    may_exist = settings.output.overwrite or settings.output.skip_existing or work_folder(output).exists()
    if output.exists() and not may_exist:
        raise OutputError(f"{output}: exists already", "--overwrite replaces it")
    if output.exists() and settings.source.slide.exists() and output.samefile(settings.source.slide):
        raise UsageError(f"{output}: is the slide itself", "choose another output with -o")
