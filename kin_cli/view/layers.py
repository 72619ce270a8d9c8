"""What a page shows over each other: the source, its translations and a real section, each placed on the source.

The common frame is level 0 of the source. A translation is placed by what kin recorded about it, else by the pixel
sizes of both files, else over the whole source if its shape is the same; a real section by a registration.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tifffile

from kin_cli.errors import InputError, KinError, UsageError
from kin_cli.geometry import Box
from kin_cli.pyramid.metadata import parse_description
from kin_cli.slide.base import Slide
from kin_cli.slide.open import open_slide
from kin_cli.slide.view import SlideView, open_view
from kin_cli.store.files import named_beside, read_regular
from kin_cli.view.pictures import Picture

_SAME_SHAPE = 0.01  # relative difference of two aspect ratios, or of two extents, that is rounding
_RECORD_BYTES = 1 << 24
_PATCH_PX = 512


@dataclass(frozen=True, eq=False)
class Layer:
    """A slide on the page.

    Attributes:
        name: what the page calls it.
        role: "source", "translation" or "real".
        picture: its tiles.
        place: corner x, y and width on level 0 of the source, in its pixels.
        height: height there.
        placed_by: how that is known, in words.
        made_from: the view of the source that a translation was made from, if that is recorded.
        patch_px: side of the patches of a translation.
    """

    name: str
    role: str
    picture: Picture
    place: tuple[float, float, float]
    height: float
    placed_by: str = ""
    made_from: SlideView | None = None
    patch_px: int = _PATCH_PX

    def as_dict(self) -> dict[str, Any]:
        """What the page needs to know of it."""
        return {
            "name": self.name,
            "role": self.role,
            "place": [*self.place, self.height],
            "placedBy": self.placed_by,
            "format": self.picture.slide.format,
            "notes": list(self.picture.slide.notes),
            "mpp": self.picture.slide.mpp,
            "patch": self.patch_px,
            **self.picture.as_dict(),
        }


@dataclass(frozen=True)
class ViewChoice:
    """Which slides to show: the source, its translations, and a real section with its registration to the source.

    ``source_mpp`` is the source's µm per pixel if its file states none or a wrong one; ``finest_mpp`` the finest
    resolution that is shown, None for all.
    """

    source: Path
    translations: tuple[Path, ...] = ()
    real: Path | None = None
    registration: Path | None = None
    source_mpp: float | None = None
    finest_mpp: float | None = None


@contextmanager
def opened_layers(choice: ViewChoice) -> Iterator[list[Layer]]:
    """Open every slide and place it on the source, which is the first layer; close them at the end of the block.

    Raises:
        InputError: a slide cannot be read, or it is not known where on the source it belongs.
        UsageError: a real section without a registration, or the other way round.
    """
    if (choice.real is None) != (choice.registration is None):
        raise UsageError("--real and --registration need each other", "kin register makes a registration")
    with ExitStack() as stack:
        source = stack.enter_context(open_slide(choice.source, mpp=choice.source_mpp))
        finest = _finest(source, choice.finest_mpp)
        names = _names([choice.source, *choice.translations])
        full = source.levels[0]
        whole = (0.0, 0.0, float(full.width))
        layers = [Layer(names[0], "source", Picture.whole(source, finest=finest), whole, float(full.height))]
        for path, name in zip(choice.translations, names[1:], strict=True):
            slide = stack.enter_context(open_slide(path))
            layers.append(translation_layer(source, slide, name, finest))
        if choice.real is not None and choice.registration is not None:
            from kin_cli.view.registered import registered_slide

            real = stack.enter_context(open_slide(choice.real))
            warped, odd = registered_slide(real, source, choice.registration)
            name = f"real: {choice.real.name}"
            warped.notes = (*warped.notes, *odd)
            layers.append(Layer(name, "real", Picture.whole(warped, finest=finest), whole, float(full.height)))
        yield layers


def recorded_settings(path: Path) -> Mapping[str, Any]:
    """The settings that a translation was made with, from its record or else its own description; empty if unknown."""
    try:
        record = named_beside(path, ".json")
        if record.stat().st_size <= _RECORD_BYTES:
            found = json.loads(read_regular(record))
            if Path(found["output"]).name == path.name:
                return dict(found["settings"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    try:
        with tifffile.TiffFile(path) as file:
            description = parse_description(file.pages.first.description.encode())
    except Exception:  # not a TIFF, or one that tifffile cannot read
        return {}
    return {} if description is None else {name: _value(text) for name, text in description.settings.items()}


def recorded_view(source: Slide, translation: Slide, settings: Mapping[str, Any]) -> SlideView | None:
    """The view of ``source`` that a translation with these settings shows; None if they do not fit both."""
    try:
        level, mpp, region = settings["level"], settings["mpp"], settings["region"]
        box = None if region is None else Box(*(int(side) for side in region))
        for resolution in ({"level": level}, {"mpp": mpp}):
            try:
                found = open_view(source, **resolution, region=box)
            except (KinError, TypeError):
                continue
            if found.size == translation.levels[0] and (mpp is None or found.mpp is None or _near(found.mpp, mpp)):
                return found
    except (KeyError, TypeError, ValueError):
        pass
    return None


def translation_layer(source: Slide, slide: Slide, name: str, finest: float = 1.0) -> Layer:
    """A translation, placed on its source; see ``opened_layers``. Raises ``InputError`` if its place is not known."""
    settings = recorded_settings(slide.path)
    made_from = recorded_view(source, slide, settings)
    x, y, width, height, how = _placed(source, slide, made_from)
    scale = width / slide.levels[0].width  # level-0 pixels of the source per pixel of the slide
    patch = settings.get("patch size")
    return Layer(
        name,
        "translation",
        Picture.whole(slide, finest=max(1.0, finest / scale)),
        (x, y, width),
        height,
        how,
        made_from if made_from is not None else _same_view(source, slide),
        patch if isinstance(patch, int) and patch > 0 else _PATCH_PX,
    )


def _placed(source: Slide, slide: Slide, made_from: SlideView | None) -> tuple[float, float, float, float, str]:
    """Corner, width and height on level 0 of the source, and how they are known."""
    full, size = source.levels[0], slide.levels[0]
    if made_from is not None:
        x, y = made_from.out_to_l0(0.0, 0.0)
        right, bottom = made_from.out_to_l0(float(size.width), float(size.height))
        return x, y, right - x, bottom - y, "as recorded by kin"
    if size in source.levels:
        return 0.0, 0.0, float(full.width), float(full.height), "by its size, which is that of the source"
    ratio = (size.width / size.height) / (full.width / full.height)
    if abs(ratio - 1) < _SAME_SHAPE:
        return 0.0, 0.0, float(full.width), float(full.height), "over the whole source, whose shape it has"
    if source.mpp is not None and slide.mpp is not None:
        scale = slide.mpp / source.mpp
        width, height = size.width * scale, size.height * scale
        if width <= full.width * (1 + _SAME_SHAPE) and height <= full.height * (1 + _SAME_SHAPE):
            return 0.0, 0.0, width, height, "by the pixel sizes, at the upper left corner: no record tells the place"
    raise InputError(
        f"{slide.path}: where on {source.path.name} it belongs is not known: neither its record"
        f" ({slide.path.name}.json) nor its size ({size}; the source has {full}) tells",
        "keep the record beside it, or show another section by --real and --registration",
    )


def _same_view(source: Slide, slide: Slide) -> SlideView | None:
    """The level of the source with the very size of a translation, as a view."""
    sizes = list(source.levels)
    return open_view(source, level=sizes.index(slide.levels[0])) if slide.levels[0] in sizes else None


def _finest(source: Slide, mpp: float | None) -> float:
    if mpp is None:
        return 1.0
    if source.mpp is None:
        hint = "give it by --source-mpp"
        raise InputError(f"{source.path}: its pixel size is not known, so --mpp cannot be used", hint)
    return max(1.0, mpp / source.mpp)


def _names(paths: Sequence[Path]) -> list[str]:
    """A short name of each path: the file's own, with its folder where two would be the same."""
    names = [path.name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _value(text: str) -> Any:
    """A setting of a description, which is a text or JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-6 * abs(other)
