"""What Python programs call: a slide translated, and its borders measured, by one function each."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kin_cli.concurrency import available_cores
from kin_cli.errors import UsageError
from kin_cli.progress import LoggedProgress, Progress
from kin_cli.settings import settings_of
from kin_cli.translation import translate as carry_out

if TYPE_CHECKING:
    from torch import nn

    from kin_cli.evaluation.seams import SlideSeams


@dataclass(frozen=True)
class Result:
    """A finished translation: the ``path`` of the output, and the ``record`` that is also in ``<output>.json``."""

    path: Path
    record: dict[str, Any]


def translate(
    slide: Path | str,
    output: Path | str | None = None,
    *,
    model: Path | str | None = None,
    generator: nn.Module | Path | str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Translate a slide into a pyramidal TIFF (or PNG, JPEG), without visible borders between patches.

    Args:
        slide: path of the slide.
        output: path of the output; None: ``slide.kin.ome.tif`` beside ``slide.svs``.
        model: path of a checkpoint, or a name that ``kin models`` lists.
        generator: instead of ``model`` a ``torch.nn.Module`` that turns images (1, 3, H, W) in -1 to 1 into images of
            the same shape and range. It is not changed; the same weights and code count as the same generator when
            unfinished work is continued.
        progress: receives stages and notes; None: notes go to Python's ``logging``.
        options: those of the command with underscores, such as ``kernel="gaussian:7"``, ``mpp=0.5``, ``region=(x, y, w,
            h)``, ``paper=True``, ``overwrite=True``, ``skip_existing=True``.

    Interrupted work is continued by the same call. Memory does not grow with the slide.

    Raises:
        KinError: any failure. The output appears only when it is complete and verified.

    Example:
        ```python
        result = kin_cli.translate("slide.svs", "out.ome.tif", model="latest_net_G.pth", kernel="gaussian:7")
        print(result.path, result.record["seconds"])
        ```
    """
    if (model is None) == (generator is None):
        hint = "a path or name as model=, or a torch.nn.Module as generator="
        raise UsageError("translate needs a generator" if model is None else "two generators were given", hint)
    settings = settings_of(slide, output, generator=generator if model is None else model, **options)  # type: ignore[arg-type]
    return Result(settings.output.path, dict(carry_out(settings, progress or LoggedProgress())))


def seams(
    slide: Path | str,
    source: Path | str | None = None,
    *,
    patch_size: int | None = None,
    tissue: Path | str = "auto",
    progress: Progress | None = None,
    workers: int | None = None,
) -> SlideSeams:
    """Measure the borders between patches of a translated slide, against its source if that is given.

    Patch size, and level and region of the source, are taken from the file if kin made it; otherwise ``patch_size`` is
    512. ``tissue`` is "auto", "none" (measure everywhere) or the path of a mask. ``result.excess`` of the value that is
    returned is the step in ΔE that the borders add: below 0.5 nobody sees it.

    Raises:
        KinError: a slide cannot be read, shows no tissue, or the two have different sizes.

    Example:
        ```python
        found = kin_cli.seams("slide.kin.ome.tif", "slide.svs")
        print(found.result.excess, found.result.interval)
        ```
    """
    from kin_cli.evaluation.seams import measure_slide_seams
    from kin_cli.evaluation.settings import SlideChoice, seam_choice, source_choice
    from kin_cli.evaluation.tiles import opened
    from kin_cli.pyramid.provenance import provenance
    from kin_cli.slide.tissue import tissue_mask

    progress, slide = progress or LoggedProgress(), Path(slide)
    made = provenance(slide)
    grid = seam_choice(slide, made, patch_px=patch_size, note=progress.note)
    mask_of = tissue if str(tissue) in ("auto", "none") else Path(tissue)
    with ExitStack() as stack:
        view, control = stack.enter_context(opened(SlideChoice(slide))), None
        if source is not None:
            choice = source_choice(made, Path(source), level=None, region=None, note=progress.note)
            control = stack.enter_context(opened(choice))
        mask = tissue_mask(control or view, mask_of)
        return measure_slide_seams(
            view, grid, source=control, mask=mask, progress=progress, workers=workers or available_cores()
        )
