"""What takes a while to find: tissue of the source, seams and trust of a translation, in the background, once each."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from kin_cli.concurrency import available_cores
from kin_cli.errors import KinError, Stopped, explained
from kin_cli.geometry import AnyArray, Mask
from kin_cli.progress import Advance, Progress, SilentProgress
from kin_cli.slide.view import SlideView, open_view
from kin_cli.store.files import named_beside
from kin_cli.view.layers import Layer

if TYPE_CHECKING:
    from kin_cli.slide.tissue import TissueMask

_WORST = 30
_TRUST_OPACITY = 120
_TINT = (0, 114, 178, 90)  # blue of the palette of Okabe and Ito, a third opaque


class Findings:
    """Tissue and seams of the layers, computed when they are first asked for, one after the other.

    Memory bound: see ``detect_tissue`` and ``measure_slide_seams``, and 40 bytes per border.
    """

    def __init__(self, layers: list[Layer]) -> None:
        self._layers = layers
        self._states: dict[str, dict[str, Any]] = {}
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def state(self, name: str) -> dict[str, Any]:
        """How far "tissue", "seams/N" or "trust/N" (of layer N) is; the first call begins it.

        A dictionary with ``fraction`` (0 to 1) while it is computed, then with the result, or with ``error``.

        Raises:
            LookupError: there is nothing of that name.
        """
        make = self._task(name)
        with self._lock:
            if name not in self._states:
                self._states[name] = {"fraction": 0.0}
                thread = threading.Thread(target=self._run, args=(name, make), name="kin-finding", daemon=True)
                self._threads.append(thread)
                thread.start()
            return dict(self._states[name])

    def now(self, name: str, progress: Progress) -> dict[str, Any]:
        """The finished result of a name, or its ``error``, computed by the caller's thread."""
        try:
            return self._task(name)(progress)
        except Stopped:
            raise
        except KinError as error:
            return {"error": str(error)}

    def close(self) -> None:
        """End what is being computed, and wait for it: it may still read a slide."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _task(self, name: str) -> Callable[[Progress], dict[str, Any]]:
        kind, _, number = name.partition("/")
        if name == "tissue":
            return lambda progress: tissue_as_dict(self._tissue(open_view(self._layers[0].picture.slide), progress))
        if kind in ("seams", "trust") and number.isascii() and number.isdecimal() and len(number) < 4:
            layer = self._layers[int(number)]
            if layer.role == "translation":
                if kind == "trust":
                    return lambda _progress: trust_of(layer)
                return lambda progress: self._seams(layer, progress)
        raise LookupError(name)

    def _run(self, name: str, make: Callable[[Progress], dict[str, Any]]) -> None:
        with self._turn:
            progress = _Reported(lambda fraction: self._note(name, {"fraction": fraction}), self._stop)
            try:
                found = make(progress)
            except Exception as error:
                found = {"error": str(explained(error))}
        self._note(name, found)

    def _note(self, name: str, state: dict[str, Any]) -> None:
        with self._lock:
            self._states[name] = state

    def _tissue(self, view: SlideView, progress: Progress) -> TissueMask:
        from kin_cli.slide.tissue import detect_tissue

        with progress.stage("tissue", 1, "overviews") as advance:
            mask = detect_tissue(view)
            advance(1)
        return mask

    def _seams(self, layer: Layer, progress: Progress) -> dict[str, Any]:
        from kin_cli.evaluation.seams import measure_slide_seams  # loads torch, which takes seconds
        from kin_cli.evaluation.settings import SeamChoice
        from kin_cli.slide.tissue import detect_tissue

        view, source = open_view(layer.picture.slide), layer.made_from
        found = measure_slide_seams(
            view,
            SeamChoice(layer.patch_px),
            source=source,
            mask=detect_tissue(source or view),
            progress=progress,
            workers=max(1, available_cores() - 1),
        )
        summary, statistic = found.summary, found.statistic
        lines = summary.lines(statistic)
        return {
            "unit": found.unit,
            "note": found.note,
            "control": source is not None,
            "ratio": found.result.headline,
            "excess": found.result.excess,
            "length": layer.patch_px,
            "lines": [
                [line.x, line.y, int(line.direction == "vertical"), round(line.excess, 3), line.length]
                for line in lines
            ],
            "worst": [
                [line.x, line.y, int(line.direction == "vertical"), round(line.excess, 3), line.length]
                for line in summary.worst(statistic, _WORST)
            ],
        }


def trust_of(layer: Layer) -> dict[str, Any]:
    """The trust map beside a translation, as a coloured PNG with a pixel for each patch, and what it shows in words."""
    from kin_cli.passes.trust import cell_colours, legend, percent, read_map  # loads torch, which takes seconds

    file = named_beside(layer.picture.slide.path, ".trust.geojson")
    found = read_map(file)
    if found is None:
        return {"error": f"no trust map beside {layer.name}: kin translate makes it"}
    if found.grid.size != layer.picture.slide.levels[0]:
        return {"error": f"the trust map beside {layer.name} is of another picture"}
    colours, _ = cell_colours(found)
    opacity = np.where(found.judged, _TRUST_OPACITY, 0)[..., None]
    image = _encoded(np.concatenate([colours, opacity], axis=-1).astype(np.uint8))
    about, least = found.summary(), percent(found.threshold)
    below = f"{percent(about['tissue_below'])} of the tissue is below {least}"
    below += f" ({about['patches_below']} of {about['patches_judged']} patches)"
    return {
        "image": image,
        "width": found.grid.cols * found.grid.step,
        "height": found.grid.rows * found.grid.step,
        "text": below,
        "legend": [
            ["#{:02x}{:02x}{:02x}".format(*colour), text] for colour, text in legend()[:-1]
        ],  # the last is not drawn
    }


class _Reported(SilentProgress):
    """Progress as a number; a stage raises ``Stopped`` when the server ends."""

    def __init__(self, report: Callable[[float], None], stop: threading.Event) -> None:
        self._report, self._stop = report, stop

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:  # noqa: ARG002
        """Report the fraction of a stage."""
        done = 0

        def advance(count: int, _detail: str = "", /) -> None:
            nonlocal done
            if self._stop.is_set():
                raise Stopped("the server ends", exit_code=1)
            done += count
            self._report(min(done / max(total, 1), 1.0))

        yield advance


def tissue_as_dict(mask: TissueMask) -> dict[str, Any]:
    """A mask as a tinted PNG in a ``data:`` address, and the fraction of the slide that is tissue."""
    return {"image": _png(mask.mask), "tissue": mask.tissue_fraction}


def _png(mask: Mask) -> str:
    return _encoded(np.where(mask[..., None], np.array(_TINT, np.uint8), np.uint8(0)))


def _encoded(pixels: AnyArray) -> str:
    """Colours with opacity (h, w, 4) as a PNG in a ``data:`` address."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
