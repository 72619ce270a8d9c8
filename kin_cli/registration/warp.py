"""The real slide as the source sees it: pixels of the registered slide, a file of them, and pictures of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from kin_cli.concurrency import prefetch
from kin_cli.errors import InputError
from kin_cli.geometry import AnyArray, Box, Doubles, Floats, Grid, Integers, Mask, Pixels, Size
from kin_cli.registration.sections import Section, centres
from kin_cli.registration.transform import Registration
from kin_cli.slide.tissue import tissue_in
from kin_cli.slide.view import SlideView, open_view, overview

_NODE_PX = 16  # between nodes the positions are interpolated; motions are smooth at 16 pixels
_BLOCK_PX = 512
_STRIP_ROWS = 128
_CHECK_UM = 500.0
_CAPTION_PX = 26


@dataclass(frozen=True, eq=False)
class RegisteredView:
    """A real slide in the frame of its source, at the resolution of a view of the source.

    Attributes:
        registration: of the two slides.
        source: the view whose frame and resolution are taken.
        real: the real slide at that resolution.
        white: colour of what is unknown, (3,) uint8.
    """

    registration: Registration
    source: SlideView
    real: SlideView
    white: tuple[int, int, int] = (255, 255, 255)

    @property
    def size(self) -> Size:
        """Size of the frame."""
        return self.source.size

    def read(self, box: Box) -> Pixels:
        """Pixels (h, w, 3) of a box of the source's frame, bilinear; what is unknown or beyond the slide is white."""
        return self.read_known(box)[0]

    def read_known(self, box: Box) -> tuple[Pixels, Mask]:
        """The same, and where (h, w) the real slide is known: registered, and inside its picture.

        Memory bound: 40 bytes per pixel of the box, and twice its area of the real slide.
        """
        known = self._known(box)
        pixels = np.empty((box.height, box.width, 3), np.uint8)
        pixels[:] = self.white
        if not known.any():
            return pixels, known
        owner = self._owner(box)
        for number in np.unique(owner[known]):
            own = known & (owner == number)
            rows, cols = _span(own.any(axis=1)), _span(own.any(axis=0))
            part = Box(box.x + cols.start, box.y + rows.start, cols.stop - cols.start, rows.stop - rows.start)
            found, inside = self._moved(part, int(number))
            here = own[rows, cols]
            pixels[rows, cols][here & inside] = found[here & inside]
            known[rows, cols] &= ~here | inside
        return pixels, known

    def _um(self, x: AnyArray, y: AnyArray) -> Doubles:
        l0 = self.source.out_to_l0(x, y)
        return np.stack(np.broadcast_arrays(*l0), axis=-1) * self.registration.source.mpp

    def _grid_um(self, box: Box) -> Doubles:
        """Centres of the pixels of a box, (h, w, 2) in µm."""
        x, y = np.arange(box.x, box.right) + 0.5, np.arange(box.y, box.bottom) + 0.5
        return self._um(x[None, :], y[:, None])

    def _known(self, box: Box) -> Mask:
        return self.registration.known(self._grid_um(box))

    def _owner(self, box: Box) -> Integers:
        return self.registration.owner(self._grid_um(box))

    def _moved(self, box: Box, number: int) -> tuple[Pixels, Mask]:
        """Pixels of a box, all by the motion of one piece, and where they are inside the real slide."""
        rows = np.arange(0, box.height + _NODE_PX, _NODE_PX) + box.y
        cols = np.arange(0, box.width + _NODE_PX, _NODE_PX) + box.x
        places = self.registration.pieces[number - 1](self._um(cols[None, :] + 0.0, rows[:, None] + 0.0))
        x, y = self.real.l0_to_out(*np.moveaxis(places / self.registration.real.mpp, -1, 0))
        down = (np.arange(box.height) + 0.5) / _NODE_PX
        across = (np.arange(box.width) + 0.5) / _NODE_PX
        x, y = (_bilinear(values, down, across) for values in (x, y))
        inside = (x >= 0) & (y >= 0) & (x < self.real.size.width) & (y < self.real.size.height)
        pixels = np.empty((box.height, box.width, 3), np.uint8)
        if not inside.any():
            pixels[:] = self.white
            return pixels, inside
        left, upper = int(x[inside].min()) - 2, int(y[inside].min()) - 2
        right, lower = int(x[inside].max()) + 3, int(y[inside].max()) + 3
        around = self.real.read(Box(left, upper, right - left, lower - upper))
        at = (y - upper - 0.5, x - left - 0.5)
        for channel in range(3):
            ndimage.map_coordinates(around[..., channel], at, pixels[..., channel], order=1, mode="nearest")
        return pixels, inside


def registered_view(registration: Registration, source: SlideView, real: SlideView, white: Pixels) -> RegisteredView:
    """The real slide, of which any view is given, at the resolution of the source's.

    Raises:
        InputError: the resolution of the source's view is not known.
    """
    if source.mpp is None:
        raise InputError(f"{source.slide.path}: the pixel size is not known", "state it in µm with --source-mpp")
    red, green, blue = (int(value) for value in white)
    return RegisteredView(registration, source, open_view(real.slide, mpp=source.mpp), (red, green, blue))


def background_colour(view: SlideView) -> Pixels:
    """The median colour (3,) of a slide outside its tissue; white if tissue is everywhere."""
    pixels = overview(view, 1024)
    outside = pixels[~tissue_in(pixels, view.slide.fill_colour)]
    found: Pixels = np.median(outside, axis=0).astype(np.uint8) if len(outside) else np.full(3, 255, np.uint8)
    return found


def _span(flags: Mask) -> slice:
    found = np.flatnonzero(flags)
    return slice(int(found[0]), int(found[-1]) + 1)


def _bilinear(values: Doubles, down: Doubles, across: Doubles) -> Doubles:
    """Values of a net of nodes (r, c) at rows ``down`` (h,) and columns ``across`` (w,) in nodes: (h, w)."""
    for axis, at in ((0, down), (1, across)):
        first = np.minimum(at.astype(np.intp), values.shape[axis] - 2)
        part = (at - first).reshape((-1, 1) if axis == 0 else (1, -1))
        values = values.take(first, axis=axis) * (1 - part) + values.take(first + 1, axis=axis) * part
    return values


def warped(registration: Registration, source: Section, real: Section) -> tuple[Floats, Mask]:
    """The density of the real section in the frame of the source, and where it is known, both (h, w) of the source.

    Memory bound: 5 bytes for each pixel, and strips of 128 rows.
    """
    height, width = source.density.shape
    density, known = np.empty((height, width), np.float32), np.empty((height, width), np.bool_)
    for top in range(0, height, _STRIP_ROWS):
        strip = np.s_[top : min(top + _STRIP_ROWS, height)]
        points = centres(source.density[strip].shape, source.um)
        points[..., 1] += top * source.um[1]
        rows, cols = real.indices(registration.moved(points))
        inside = (rows > -0.5) & (cols > -0.5) & (rows < real.density.shape[0]) & (cols < real.density.shape[1])
        ndimage.map_coordinates(real.density, (rows, cols), density[strip], order=1, mode="constant")
        known[strip] = registration.known(points) & inside
    return density, known


def overview_pair(view: RegisteredView, max_side: int, *, workers: int) -> tuple[Pixels, Pixels, Mask]:
    """Source and registered real slide at the view's resolution in one piece, and where the latter is known.

    For views of at most ``max_side`` pixels; read in blocks.
    """
    if max(view.size.width, view.size.height) > max_side:
        raise ValueError(f"a view of {view.size} is too large for one picture of {max_side}")
    height, width = view.size.height, view.size.width
    before, after = np.empty((2, height, width, 3), np.uint8)
    known = np.zeros((height, width), np.bool_)
    boxes = list(blocks(view.size))
    read = partial(_both, view)
    for box, (one, other, flags) in zip(boxes, prefetch(read, boxes, workers=workers, ahead=workers), strict=True):
        where = box.slices()
        before[where], after[where], known[where] = one, other, flags
    return before, after, known


def _both(view: RegisteredView, box: Box) -> tuple[Pixels, Pixels, Mask]:
    return view.source.read(box), *view.read_known(box)


def blocks(size: Size, side: int = _BLOCK_PX) -> Iterator[Box]:
    """The blocks of an image, row by row."""
    grid = Grid(size, side)
    return (grid.clipped(cell) for cell in grid)


def picture(before: Pixels, after: Pixels, um: float) -> Image.Image:
    """Checkerboard of both (squares of 500 µm), and beside it a curtain: the source left, the real slide right."""
    height, width = before.shape[:2]
    side = max(8, round(_CHECK_UM / um))
    rows, cols = np.arange(height)[:, None] // side, np.arange(width)[None] // side
    checks = np.where(((rows + cols) % 2 == 0)[..., None], before, after)
    curtain = np.where((np.arange(width) < width // 2)[None, :, None], before, after)
    sheet = Image.new("RGB", (2 * width + 8, height + _CAPTION_PX), "white")
    captions = (  # Pillow's font has no µ
        f"checkerboard, squares of {side * um:.0f} um",
        "curtain: source | registered real slide",
    )
    for number, (pixels, text) in enumerate(zip((checks, curtain), captions, strict=True)):
        left = number * (width + 8)
        sheet.paste(Image.fromarray(pixels), (left, _CAPTION_PX))
        ImageDraw.Draw(sheet).text((left + 4, 5), text, fill="black", font=ImageFont.load_default(14))
    ImageDraw.Draw(sheet).line(
        [(width + 8 + width // 2, _CAPTION_PX), (width + 8 + width // 2, sheet.height)], fill=(0, 200, 255), width=1
    )
    return sheet
