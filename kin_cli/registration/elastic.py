"""From a rough place to an elastic map: rigid, affine and B-spline registration by SimpleITK.

All of them maximize the mutual information of the densities of both sections (Mattes et al., IEEE Trans. Med. Imaging
22, 2003), which needs no common colour, from coarse to fine resolution. Only pixels of a piece and a rim of background
count. SimpleITK comes with ``pip install kin-cli[validate]``.
"""

from __future__ import annotations

import ctypes
import math
import sys
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy import ndimage

from kin_cli.concurrency import available_cores
from kin_cli.errors import KinError
from kin_cli.geometry import AnyArray, Box, Doubles, Floats, Mask, Size
from kin_cli.registration.search import Place
from kin_cli.registration.sections import Section

_BINS = 32
_RIM_UM = 100.0  # of background around a piece that counts
_ROOM_UM, _ROOM = 500.0, 0.15  # around where a piece is expected, in µm, and as a fraction of its extent
_COARSE_UM, _MIDDLE_UM = 32.0, 16.0
_MOST_PIXELS = 2.4e6  # of the rectangle around a piece at the finest resolution
_SAMPLES = 40_000  # pixels that the mutual information is computed of, at least
_FRACTION = 0.2  # of the pixels, if these are more
_KNOTS_UM = (1280.0, 640.0, 320.0)  # distances of the B-spline's control points, at the resolutions coarse to fine
_MOST_PARAMETERS = 6000  # of a spline: each has 8 kB of derivatives,
_PARALLEL_PARAMETERS = 1000  # and those of several threads are buffered: 0.16 MB each
_M_MMAP_THRESHOLD = -3  # parameter of mallopt, from malloc.h
NODE_UM = 32.0
"""Distance of the nodes at which a displacement is stored; the B-spline is smooth at a tenth of its control points."""

_LEAST_STRETCH, _MOST_STRETCH = 0.7, 1.4  # of a length by the affine map; sections of one block differ less
_LEAST_AREA, _MOST_AREA = 0.25, 4.0  # of a small area by the elastic map; below 0 it would be turned over


Frame: TypeAlias = tuple[float, float, float, float]
"""Left, upper, right and lower end in µm."""


def simple_itk() -> Any:
    """SimpleITK, or ``KinError`` with what to install."""
    try:
        import SimpleITK
    except ImportError:
        raise KinError("registration needs SimpleITK", "pip install 'kin-cli[validate]'") from None
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(min(available_cores(), 8))
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    _give_back_early()
    return SimpleITK


def _give_back_early() -> None:
    """Let glibc return every array of over 1 MiB to the system when it is freed, whatever it has seen so far."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)


@dataclass(frozen=True, eq=False)
class Bend:
    """Displacements (2, rows, cols) in µm, x first, at nodes ``origin`` + index · ``NODE_UM``; beyond them the nearest.

    Between nodes they are interpolated linearly.
    """

    origin: tuple[float, float]
    values: Floats

    def __call__(self, points: Doubles) -> Doubles:
        """Displacements (…, 2) at points (…, 2), all in µm."""
        rows = (points[..., 1] - self.origin[1]) / NODE_UM
        cols = (points[..., 0] - self.origin[0]) / NODE_UM
        found = [ndimage.map_coordinates(layer, (rows, cols), order=1, mode="nearest") for layer in self.values]
        return np.stack(found, axis=-1).astype(np.float64)


class Aligner:
    """Registers pieces of one section to another, at whatever resolutions both have."""

    def __init__(self, source: Section, target: Section) -> None:
        self._sitk = simple_itk()
        self._pairs = {um: (source.at(um), target.at(um)) for um in (_COARSE_UM, _MIDDLE_UM)}
        self._pairs[0.0] = (source, target)

    def _finest(self, piece: Mask) -> float:
        """The key of the finest resolution at which a piece is bent: 0 or, of a piece of over 2.4 million pixels, µm.

        So memory is bounded, and so is the time.
        """
        left, upper, right, lower = self._frame(piece)
        um = self._pairs[0.0][0].um
        factor = math.ceil(math.sqrt((right - left) * (lower - upper) / (um[0] * um[1] * _MOST_PIXELS)))
        if factor <= 1:
            return 0.0
        coarse = um[0] * factor
        if coarse not in self._pairs:
            self._pairs[coarse] = (self._pairs[0.0][0].at(coarse), self._pairs[0.0][1].at(coarse))
        return coarse

    def rigid(self, piece: Mask, place: Place) -> tuple[float, Place]:
        """A place improved at 32 µm per pixel, and the mutual information there (natural units, higher is better)."""
        sitk = self._sitk
        transform = sitk.Euler2DTransform()
        transform.SetCenter(place.centre)
        transform.SetAngle(place.angle)
        transform.SetTranslation(np.subtract(place.place, place.centre).tolist())
        value = self._run(transform, piece, _COARSE_UM, shrinks=(2, 1), step=2 * _COARSE_UM, rounds=60)
        there = transform.TransformPoint(place.centre)
        return value, Place(value, transform.GetAngle(), place.centre, (there[0], there[1]))

    def affine(self, piece: Mask, place: Place) -> tuple[float, Doubles]:
        """The affine map (2, 3) that a place leads to, and its mutual information; the rigid one if it is distorted."""
        transform = self._sitk.AffineTransform(2)
        start = place.matrix()
        transform.SetCenter(place.centre)
        transform.SetMatrix(start[:, :2].ravel().tolist())
        transform.SetTranslation(np.subtract(place.place, place.centre).tolist())
        value = place.score
        for um, shrinks in ((_COARSE_UM, (2, 1)), (_MIDDLE_UM, (1,)), (self._finest(piece), (1,))):
            value = self._run(transform, piece, um, shrinks=shrinks, step=max(um, 8.0), rounds=100)
        linear = np.array(transform.GetMatrix()).reshape(2, 2)
        stretch = np.linalg.svd(linear, compute_uv=False)
        if stretch.min() < _LEAST_STRETCH or stretch.max() > _MOST_STRETCH or np.linalg.det(linear) <= 0:
            return place.score, start
        there = np.array(transform.TransformPoint(place.centre))
        return value, np.column_stack([linear, there - linear @ np.array(place.centre)])

    def elastic(self, piece: Mask, matrix: Doubles) -> tuple[float, Bend | None]:
        """What bends a piece before the affine map, and the mutual information; no bend if every one would fold it.

        The better of two ways: from a blurred picture, which unbends long cores, and from a sharp one, which does not
        confuse the crypts of a mucosa with their neighbours.
        """
        found = [self._bent(piece, matrix, blurred=blurred) for blurred in (False, True)]
        return max(found, key=lambda one: (one[1] is not None, one[0]))

    def _bent(self, piece: Mask, matrix: Doubles, *, blurred: bool) -> tuple[float, Bend | None]:
        sitk, known = self._sitk, self._affine(matrix)
        left, upper, right, lower = self._frame(piece)
        for finest in range(len(_KNOTS_UM), 0, -1):
            spline = sitk.BSplineTransform(2, 3)
            spline.SetTransformDomainOrigin((left, upper))
            spline.SetTransformDomainPhysicalDimensions((right - left, lower - upper))
            spline.SetTransformDomainMeshSize(_mesh(right - left, lower - upper))
            value = 0.0
            for number in range(finest):
                if number:
                    spline = _refined(sitk, spline)
                um = (_COARSE_UM, _MIDDLE_UM, self._finest(piece))[number]
                value = self._run_spline(spline, known, piece, um, blurred=blurred and not number)
            bend = _sampled(spline, (left, upper, right, lower))
            if not folds(bend, self._near(piece, bend)):
                return value, bend
        return 0.0, None

    def _near(self, piece: Mask, bend: Bend) -> Mask:
        """The nodes of a bend that lie on the piece or next to it."""
        um = self._pairs[0.0][0].um
        grown = ndimage.binary_dilation(piece, iterations=math.ceil(NODE_UM / um[0]))
        rows, cols = bend.values.shape[1:]
        at = [
            ((bend.origin[axis] + np.arange(n) * NODE_UM) / um[axis]).astype(np.intp).clip(0, piece.shape[1 - axis] - 1)
            for n, axis in ((rows, 1), (cols, 0))
        ]
        found: Mask = grown[np.ix_(*at)]
        return found

    def _affine(self, matrix: Doubles) -> Any:
        transform = self._sitk.AffineTransform(2)
        transform.SetMatrix(matrix[:, :2].ravel().tolist())
        transform.SetTranslation(matrix[:, 2].tolist())
        return transform

    def _image(self, side: int, um: float, frame: Frame) -> Any:
        """A part of one of the two sections at a resolution, as SimpleITK's image in µm; background beyond the slide.

        A piece at the edge of the target is to be compared with background there.
        """
        section = self._pairs[um][side]
        return self._as_image(ndimage.gaussian_filter(_cut(section.density, section.um, frame), 0.5), section.um, frame)

    def _as_image(self, values: Any, um: tuple[float, float], frame: Frame) -> Any:
        image = self._sitk.GetImageFromArray(values)
        image.SetSpacing(um)
        left, upper = (math.floor(frame[axis] / um[axis]) for axis in (0, 1))
        image.SetOrigin(((left + 0.5) * um[0], (upper + 0.5) * um[1]))
        return image

    def _mask(self, piece: Mask, um: float, frame: Frame) -> tuple[Any, int]:
        """The piece (h, w) of the finest resolution with its rim, at another one, and its number of pixels."""
        section, fine = self._pairs[um][0], self._pairs[0.0][0]
        cut = _cut(piece, fine.um, frame)
        shape = _cut(section.tissue, section.um, frame).shape
        at = []
        for axis in (1, 0):
            first = math.floor(frame[axis] / section.um[axis])
            places = (first + np.arange(shape[1 - axis]) + 0.5) * section.um[axis] / fine.um[axis]
            places = places - math.floor(frame[axis] / fine.um[axis])
            at.append(np.clip(places.astype(np.intp), 0, cut.shape[1 - axis] - 1))
        near = ndimage.distance_transform_edt(~cut[np.ix_(*at)]) * section.um[0] <= _RIM_UM
        return self._as_image(near.astype(np.uint8), section.um, frame), int(near.sum())

    def _frame(self, piece: Mask) -> Frame:
        """The ends of a piece with its rim."""
        um = self._pairs[0.0][0].um
        rows, cols = (np.flatnonzero(piece.any(axis=axis)) for axis in (1, 0))
        rim = 2 * _RIM_UM
        left, right = cols[0] * um[0] - rim, (cols[-1] + 1) * um[0] + rim
        upper, lower = rows[0] * um[1] - rim, (rows[-1] + 1) * um[1] + rim
        return float(left), float(upper), float(right), float(lower)

    def _there(self, frame: Frame, matrix: Doubles) -> Frame:
        """The ends of what an affine map makes of a frame, with room for it to move."""
        left, upper, right, lower = frame
        corners = np.array([(x, y) for x in (left, right) for y in (upper, lower)]) @ matrix[:, :2].T + matrix[:, 2]
        room = max(_ROOM_UM, _ROOM * float(np.ptp(corners, axis=0).max()))
        return (*(corners.min(axis=0) - room).tolist(), *(corners.max(axis=0) + room).tolist())

    def _method(self, piece: Mask, um: float, frame: Frame) -> Any:
        sitk = self._sitk
        mask, pixels = self._mask(piece, um, frame)
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(_BINS)
        fraction = max(_FRACTION, _SAMPLES / max(pixels, 1))
        if fraction < 1:
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(fraction, 1)
        method.SetMetricFixedMask(mask)
        method.SetInterpolator(sitk.sitkLinear)
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
        return method

    def _run(
        self, transform: Any, piece: Mask, um: float, *, shrinks: tuple[int, ...], step: float, rounds: int
    ) -> float:
        """Improve a linear transform in place; returns its mutual information."""
        frame = self._frame(piece)
        method = self._method(piece, um, frame)
        method.SetShrinkFactorsPerLevel(shrinks)
        method.SetSmoothingSigmasPerLevel([shrink / 2 for shrink in shrinks])
        method.SetOptimizerAsRegularStepGradientDescent(step, step / 100, rounds, 0.6)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(transform, True)
        return self._executed(method, um, frame, _matrix_of(transform))

    def _run_spline(self, spline: Any, known: Any, piece: Mask, um: float, *, blurred: bool) -> float:
        frame = self._frame(piece)
        method = self._method(piece, um, frame)
        if len(spline.GetParameters()) > _PARALLEL_PARAMETERS:
            method.SetNumberOfWorkUnits(1)
        shrinks, sigmas = ((2, 1, 1), (4.0, 2.0, 0.5)) if blurred else ((1,), (0.5,))
        method.SetShrinkFactorsPerLevel(shrinks)
        method.SetSmoothingSigmasPerLevel(sigmas)
        method.SetOptimizerAsLBFGS2(
            solutionAccuracy=1e-8, numberOfIterations=40, deltaConvergenceDistance=3, deltaConvergenceTolerance=1e-5
        )
        method.SetMovingInitialTransform(known)
        method.SetInitialTransform(spline, True)
        return self._executed(method, um, frame, _matrix_of(known))

    def _executed(self, method: Any, um: float, frame: Frame, matrix: Doubles) -> float:
        try:
            method.Execute(self._image(0, um, frame), self._image(1, um, self._there(frame, matrix)))
        except RuntimeError as error:  # all samples map outside, or the transform became singular
            cause = str(error).strip().splitlines()
            raise AlignmentError(cause[-1] if cause else "unknown") from error
        return -float(method.GetMetricValue())


def _cut(values: AnyArray, um: tuple[float, float], frame: Frame) -> AnyArray:
    """The pixels (h, w) of a frame in µm, 0 beyond the picture."""
    left, upper = (math.floor(frame[axis] / um[axis]) for axis in (0, 1))
    right, lower = (math.ceil(frame[2 + axis] / um[axis]) for axis in (0, 1))
    inside = Box(left, upper, right - left, lower - upper).clipped(Size(values.shape[1], values.shape[0]))
    cut = np.zeros((lower - upper, right - left), values.dtype)
    cut[inside.slices(Box(left, upper, 0, 0))] = values[inside.slices()]
    return cut


def _matrix_of(transform: Any) -> Doubles:
    """A linear transform of SimpleITK as an affine map (2, 3)."""
    origin = np.array(transform.TransformPoint((0.0, 0.0)))
    ends = [np.array(transform.TransformPoint(axis)) - origin for axis in ((1.0, 0.0), (0.0, 1.0))]
    return np.column_stack([*ends, origin])


class AlignmentError(Exception):
    """SimpleITK could not go on, for example since no pixel of the piece lies on the other slide any more."""


def _mesh(width: float, height: float) -> list[int]:
    """Spans of the coarsest spline along both axes of a frame in µm; fewer if the finest had too many parameters."""
    finer = 2 ** (len(_KNOTS_UM) - 1)
    knots = _KNOTS_UM[0]
    while True:
        mesh = [max(1, round(extent / knots)) for extent in (width, height)]
        if 2 * math.prod(finer * spans + 3 for spans in mesh) <= _MOST_PARAMETERS:
            return mesh
        knots *= 1.1


def _refined(sitk: Any, spline: Any) -> Any:
    """The same displacement with twice as many control points."""
    origin, extent = spline.GetTransformDomainOrigin(), spline.GetTransformDomainPhysicalDimensions()
    mesh = [2 * n for n in spline.GetTransformDomainMeshSize()]
    finer = sitk.BSplineTransform(2, 3)
    finer.SetTransformDomainOrigin(origin)
    finer.SetTransformDomainPhysicalDimensions(extent)
    finer.SetTransformDomainMeshSize(mesh)
    coefficients = []
    for image in spline.GetCoefficientImages():
        values = sitk.GetArrayFromImage(image)
        for axis in (0, 1):
            values = _subdivided(values, axis)
        coefficients.append(values.ravel())
    finer.SetParameters(np.concatenate(coefficients).tolist())
    return finer


def _subdivided(values: Doubles, axis: int) -> Doubles:
    """Coefficients of a uniform cubic B-spline at half the distance along an axis (the two-scale relation).

    n spans have n + 3 coefficients, so that 2n spans have 2n + 3.
    """
    values = np.moveaxis(values, axis, 0)
    between = (values[:-1] + values[1:]) / 2  # (1 4 6 4 1) / 8: odd ones
    on = (values[:-2] + 6 * values[1:-1] + values[2:]) / 8  # even ones
    finer = np.empty((2 * len(values) - 3, *values.shape[1:]))
    finer[0::2], finer[1::2] = between, on
    return np.moveaxis(finer, 0, axis)


def _sampled(spline: Any, frame: Frame) -> Bend:
    """The displacement of a spline at the nodes of a frame (left, upper, right, lower in µm)."""
    left, upper, right, lower = frame
    cols, rows = math.ceil((right - left) / NODE_UM), math.ceil((lower - upper) / NODE_UM)
    values = np.zeros((2, rows, cols), np.float32)
    for row in range(rows):
        for col in range(cols):
            point = (left + col * NODE_UM, upper + row * NODE_UM)
            moved = spline.TransformPoint(point)
            values[:, row, col] = moved[0] - point[0], moved[1] - point[1]
    return Bend((left, upper), values)


def folds(bend: Bend, where: Mask) -> bool:
    """Whether a bend turns tissue over at a node of ``where``, or changes a small area more than fourfold."""
    if min(bend.values.shape[1:]) < 2:
        return False
    across = np.diff(bend.values, axis=2)[:, :-1] / NODE_UM
    down = np.diff(bend.values, axis=1)[:, :, :-1] / NODE_UM
    area = ((1 + across[0]) * (1 + down[1]) - across[1] * down[0])[where[:-1, :-1]]
    return bool(area.size and (area.min() < _LEAST_AREA or area.max() > _MOST_AREA))
