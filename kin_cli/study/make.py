"""Making the items of a study: the same field of view of every image, at one resolution, in pictures of one size.

A difference in size or sharpness would tell a reader which image is real. So all images of an item are shown at the
resolution of the coarsest among them, and a region has the same number of pixels in each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kin_cli.errors import InputError, UsageError
from kin_cli.evaluation.tiles import tissue_boxes
from kin_cli.geometry import Box, Size
from kin_cli.slide.base import Slide
from kin_cli.slide.open import open_slide
from kin_cli.slide.tissue import detect_tissue
from kin_cli.slide.view import open_view
from kin_cli.study.plan import Image, Item, check_box
from kin_cli.study.settings import ItemSettings
from kin_cli.view.layers import Layer, translation_layer

_SAME = 0.02  # relative difference of two fields of view that is rounding
_Part = tuple[float, float, float, float]


def made_items(settings: ItemSettings, seed: int) -> Iterator[Item]:
    """The items of one entry of ``study.toml``: one for each region, or one of the whole slide.

    Raises:
        InputError: a slide cannot be read, or its place on the source is not known.
        UsageError: a region is not covered by all slides.
    """
    with ExitStack() as stack:
        source = stack.enter_context(open_slide(settings.source, mpp=settings.source_mpp))
        reference = stack.enter_context(open_slide(settings.reference, mpp=settings.reference_mpp))
        layers = {}
        for name, path in settings.methods.items():
            slide = stack.enter_context(open_slide(path))
            layers[name] = translation_layer(source, slide, name)
        fields = _Fields(settings, source, reference, layers)
        if settings.regions == ():
            yield fields.whole()
            return
        regions = fields.drawn(settings.regions, seed) if isinstance(settings.regions, int) else settings.regions
        for number, region in enumerate(regions):
            beside = settings.reference_regions[number] if settings.reference_regions else None
            name = settings.name if len(regions) == 1 else f"{settings.name} #{number + 1}"
            yield fields.item(name, region, beside)


@dataclass(frozen=True, eq=False)
class _Fields:
    """The slides of an entry, and the fields of view that items show of them."""

    settings: ItemSettings
    source: Slide
    reference: Slide
    layers: Mapping[str, Layer]

    def whole(self) -> Item:
        """All that every method shows of the source, and all of the reference."""
        x, y, right, bottom = self._covered()
        if right <= x or bottom <= y:
            raise UsageError(f"{self.settings.source}: the methods show no common part of it")
        full = self.reference.levels[0]
        return self._made(
            self.settings.name, (x, y, right - x, bottom - y), (0.0, 0.0, float(full.width), float(full.height)), None
        )

    def item(self, name: str, region: Box, beside: Box | None) -> Item:
        """A region of the source, and the same of the reference, or ``beside`` there."""
        full, other = self.source.levels[0], self.reference.levels[0]
        check_box(region, full.width, full.height, str(self.settings.source))
        x, y, right, bottom = self._covered()
        if region.x < x - 1 or region.y < y - 1 or region.right > right + 1 or region.bottom > bottom + 1:
            asked = f"{region.x},{region.y},{region.width},{region.height}"
            raise UsageError(f"{self.settings.source}: the region {asked} is not covered by every method")
        if beside is None:
            if other != full:
                hint = "say where the reference shows the same by reference_regions"
                raise UsageError(f"{self.settings.reference}: has another size than {self.source.path.name}", hint)
            beside = region
        check_box(beside, other.width, other.height, str(self.settings.reference))
        width, height = region.width * self._ratio(), region.height * self._ratio()
        if abs(beside.width - width) > _SAME * width + 1 or abs(beside.height - height) > _SAME * height + 1:
            raise UsageError(
                f"{self.settings.reference}: its region {beside.x},{beside.y},{beside.width},{beside.height} shows"
                f" another field of view than the source's {region.width}×{region.height} px",
                f"take {width:.0f}×{height:.0f} px there",
            )
        part = (float(region.x), float(region.y), float(region.width), float(region.height))
        place = (float(beside.x), float(beside.y), float(beside.width), float(beside.height))
        return self._made(name, part, place, self._size(part))

    def drawn(self, count: int, seed: int) -> list[Box]:
        """Regions of ``region_px`` that are at least half tissue, drawn at random."""
        side, view = self.settings.region_px, open_view(self.source)
        x, y, right, bottom = self._covered()
        found = [
            box
            for box in tissue_boxes(view, detect_tissue(view), side)
            if box.x >= x - 1 and box.y >= y - 1 and box.right <= right + 1 and box.bottom <= bottom + 1
        ]
        if len(found) < count:
            raise InputError(
                f"{self.settings.source}: every method shows only {len(found)} regions of {side}×{side} px with tissue",
                "ask for fewer, or smaller ones by region_px",
            )
        return random.Random(f"{seed}/{self.settings.name}").sample(found, count)

    def _made(self, name: str, part: _Part, reference: _Part, size: tuple[int, int] | None) -> Item:
        images = {}
        for method, layer in self.layers.items():
            full = layer.picture.slide.levels[0]
            x, y = layer.place[2] / full.width, layer.height / full.height
            inside = _inside(
                ((part[0] - layer.place[0]) / x, (part[1] - layer.place[1]) / y, part[2] / x, part[3] / y), full
            )
            images[method] = _image(layer.picture.slide, inside, size or self._size(part))
        if size is None:  # of a whole reference, in the resolution of the others
            ratio = self._ratio() * self._coarsest()
            size_there = (max(1, round(reference[2] / ratio)), max(1, round(reference[3] / ratio)))
        else:
            size_there = size
        return Item(
            name=name,
            dataset=self.settings.dataset,
            practice=self.settings.practice,
            source=_image(self.source, _inside(part, self.source.levels[0]), size or self._size(part)),
            reference=_image(self.reference, _inside(reference, self.reference.levels[0]), size_there),
            methods=images,
        )

    def _covered(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what all methods show, on level 0 of the source."""
        places = [(*layer.place, layer.height) for layer in self.layers.values()]
        return (
            max(0.0, *(place[0] for place in places)),
            max(0.0, *(place[1] for place in places)),
            min(float(self.source.levels[0].width), *(place[0] + place[2] for place in places)),
            min(float(self.source.levels[0].height), *(place[1] + place[3] for place in places)),
        )

    def _ratio(self) -> float:
        """Pixels of the reference per pixel of the source along the same length; 1 if either size is unknown."""
        if self.source.mpp is None or self.reference.mpp is None:
            return 1.0
        return self.source.mpp / self.reference.mpp

    def _coarsest(self) -> float:
        """Level-0 pixels of the source per pixel of the coarsest slide."""
        scales = [layer.place[2] / layer.picture.slide.levels[0].width for layer in self.layers.values()]
        return max(1.0, 1 / self._ratio(), *scales)

    def _size(self, part: _Part) -> tuple[int, int]:
        scale = self._coarsest()
        return max(1, round(part[2] / scale)), max(1, round(part[3] / scale))


def _image(slide: Slide, part: _Part, size: tuple[int, int]) -> Image:
    status = slide.path.stat()
    return Image(str(slide.path.resolve()), part, size, (status.st_size, status.st_mtime_ns), slide.mpp)


def _inside(part: _Part, size: Size) -> _Part:
    """A part moved and cut by the rounding that may have put it outside of a slide."""
    x, y = max(0.0, part[0]), max(0.0, part[1])
    return x, y, min(part[2], size.width - x), min(part[3], size.height - y)


def check_unchanged(image: Image) -> None:
    """Raise ``InputError`` if the file of an image is gone, or was changed since the study was made."""
    path = Path(image.path)
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: a slide of the study cannot be read: {error.strerror}", "put it back") from None
    if (status.st_size, status.st_mtime_ns) != tuple(image.stamp):
        raise InputError(f"{path}: was changed since the study was made", "put it back, or make the study again")
