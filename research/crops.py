"""Crops of the downstream check, their labels, and the scores of a classifier of real target patches on them.

The paper's supplement 0.2 trains a classifier on patches of real IHC slides and tests it on crops across the patch
borders of translated slides. What its scores mean depends on the labels:

* *Slides of several classes* (the paper's: breast, lung, colon). A slide has one class, and its translation keeps it.
  Accuracy: does the translation preserve what distinguishes these tissues?
* *Masks* of a class on source and target, drawn by someone. Accuracy: does the translation show the class in its place?
* *The rule*, for one slide of each stain and no mask: the classifier learns the brownest third of the real patches
  against the least brown third, by optical density of DAB, and is tested on whether a crop is above their median. The
  label is the crop's own amount of brown, since the true amount on an unstained section is unknown. Accuracy: does a
  classifier trained on real patches see in a crop what its amount of brown says? Artefacts of tiling lower it; brown in
  the wrong place does not. A method that paints nearly everything brown scores well, too: compare its fraction of
  positive crops with that of the real ones, and its agreement with the other methods.

Crops across borders are centred on the corners where four patches meet; the patches themselves are the control.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from classifier import PatchClassifier, accuracy, auc, shrunk
from dab import brown_fraction
from numpy.typing import NDArray

from kin_cli.concurrency import prefetch
from kin_cli.errors import InputError
from kin_cli.geometry import Box, Doubles, Grid, Pixels, Size
from kin_cli.slide.tissue import TissueMask

Reader = Callable[[Box], Pixels]
Labels = NDArray[np.intp]

UNDECIDED = -1
_LEAST_TISSUE = 0.5
_HELD_BLOCK = 3  # side, in patches, of the blocks that are held out together
_HELD_FRACTION = 4  # one block of so many
_FEWEST = 4  # training patches of a class


@dataclass(frozen=True)
class Limits:
    """Fractions of brown pixels that divide real patches into thirds and halves."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, fractions: Sequence[float]) -> Limits:
        """The quantiles 1/3, 1/2 and 2/3 of the patches' fractions."""
        return cls(*(float(limit) for limit in np.quantile(fractions, (1 / 3, 1 / 2, 2 / 3))))

    def to_learn(self, fractions: Sequence[float]) -> Labels:
        """Labels for training: 1 for the brownest third, 0 for the least brown, ``UNDECIDED`` in between."""
        return np.array([1 if s > self.high else 0 if s < self.low else UNDECIDED for s in fractions], np.intp)

    def to_test(self, fractions: Sequence[float]) -> Labels:
        """Labels for testing: 1 for patches browner than the median, otherwise 0."""
        return np.array([int(fraction > self.middle) for fraction in fractions], np.intp)


@dataclass(frozen=True)
class Score:
    """Scores on one set of crops: ``positive`` is the fraction of class 1 among its ``n`` labels."""

    n: int
    positive: float
    accuracy: float
    auc: float


def across_borders(size: Size, patch_px: int) -> list[Box]:
    """Boxes of a patch's size centred on every corner where four whole patches meet."""
    half = patch_px // 2
    return _lattice(size, patch_px, (half, half))


def inside_patches(size: Size, patch_px: int) -> list[Box]:
    """Boxes of the whole patches."""
    return _lattice(size, patch_px, (0, 0))


def _lattice(size: Size, side: int, corner: tuple[int, int]) -> list[Box]:
    return [
        Box(x, y, side, side)
        for y in range(corner[1], size.height - side - corner[1] + 1, side)
        for x in range(corner[0], size.width - side - corner[0] + 1, side)
    ]


def covered(boxes: Sequence[Box], mask: TissueMask) -> list[float]:
    """Fraction of each box of ``across_borders`` or ``inside_patches`` that the mask covers."""
    if not boxes:
        return []
    # all boxes lie on the lattice of half patches
    step = boxes[0].width // 2
    fraction = mask.fraction(Grid(mask.size, step))
    places = [(box.y // step, box.x // step) for box in boxes]
    return [float(fraction[row : row + 2, col : col + 2].mean()) for row, col in places]


def with_tissue(boxes: Sequence[Box], mask: TissueMask) -> list[Box]:
    """The boxes that are at least half tissue."""
    fractions = covered(boxes, mask)
    return [box for box, fraction in zip(boxes, fractions, strict=True) if fraction >= _LEAST_TISSUE]


def labels_of_mask(boxes: Sequence[Box], mask: TissueMask) -> Labels:
    """1 for boxes that the mask covers at least by half, 0 for boxes it does not touch, otherwise ``UNDECIDED``."""
    fractions = covered(boxes, mask)
    return np.array([1 if s >= _LEAST_TISSUE else 0 if s == 0 else UNDECIDED for s in fractions], np.intp)


@dataclass(frozen=True)
class Crops:
    """Crops of an image, shrunk for the classifier, and the fractions of brown pixels they had before."""

    boxes: list[Box]
    patches: list[Pixels]
    brown: list[float]

    @classmethod
    def read(cls, read: Reader, boxes: Sequence[Box], *, workers: int) -> Crops:
        """Read the boxes. Memory bound: 49 kB per crop, and 2 · ``workers`` crops in full size."""

        def one(box: Box) -> tuple[Pixels, float]:
            pixels = read(box)
            return shrunk(pixels), brown_fraction(pixels)

        found = list(prefetch(one, boxes, workers=workers, ahead=2 * workers))
        return cls(list(boxes), [patch for patch, _ in found], [fraction for _, fraction in found])


def held_out(boxes: Sequence[Box]) -> NDArray[np.bool_]:
    """Mask of the boxes held out to test the classifier on real patches: blocks of neighbours, about a quarter."""
    block = [(box.y // (_HELD_BLOCK * box.height), box.x // (_HELD_BLOCK * box.width)) for box in boxes]
    return np.array([(row + 2 * col) % _HELD_FRACTION == 0 for row, col in block], bool)


def trained(patches: Sequence[Pixels], labels: Labels, *, classes: int, epochs: int, seed: int) -> PatchClassifier:
    """A classifier trained on the patches whose label is decided.

    Raises:
        InputError: A class has fewer than four patches.
    """
    counts = np.bincount(labels[labels != UNDECIDED], minlength=classes)
    if counts.min() < _FEWEST:
        raise InputError(
            f"class {int(counts.argmin())} has {counts.min()} real patches to learn from, {_FEWEST} are the least",
            "more target slides, or smaller patches",
        )
    classifier = PatchClassifier(classes, seed=seed)
    chosen = np.flatnonzero(labels != UNDECIDED)
    classifier.fit([patches[int(number)] for number in chosen], labels[chosen].tolist(), epochs=epochs)
    return classifier


def score(probabilities: Doubles, labels: Labels) -> Score:
    """Scores over the crops whose label is decided."""
    chosen = labels != UNDECIDED
    found, wanted = probabilities[chosen], labels[chosen]
    fraction = float((wanted == 1).mean()) if len(wanted) else float("nan")
    return Score(len(wanted), fraction, accuracy(found, wanted), auc(found, wanted))


def agreement(predictions: Mapping[str, Labels]) -> dict[str, dict[str, float]]:
    """Fraction of the crops that each pair of methods puts into the same class."""
    return {
        one: {other: float((predictions[one] == predictions[other]).mean()) for other in predictions}
        for one in predictions
    }


def as_dict(value: Score) -> dict[str, Any]:
    """A score ready for JSON, with NaN as None."""
    return {name: None if entry != entry else entry for name, entry in asdict(value).items()}
