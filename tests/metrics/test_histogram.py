"""Histograms against NumPy, hue against Python's own HSV."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from kin_cli.geometry import Pixels
from kin_cli.metrics.colour import lab
from kin_cli.metrics.histogram import HueHistogram, LabHistogram, correlations, opencv_hue
from tests.helpers.pictures import noisy


def test_hue_is_opencvs(tissue: Pixels) -> None:
    """Known values, and Python's own HSV everywhere to within the table's rounding."""
    known = {(255, 0, 0): 0, (0, 255, 0): 60, (0, 0, 255): 120, (255, 255, 0): 30, (255, 0, 255): 150, (7, 7, 7): 0}
    assert opencv_hue(np.array(list(known), np.uint8)).tolist() == list(known.values())
    sample = tissue[::37, ::23].reshape(-1, 3)
    expected = np.array([colorsys.rgb_to_hsv(*pixel)[0] * 180 for pixel in sample / 255])
    distance = np.abs(opencv_hue(sample) - expected)
    assert np.minimum(distance, 180 - distance).max() < 0.52
    # just short of red from the blue side
    assert opencv_hue(np.array([[255, 0, 5], [255, 0, 4]], np.uint8)).tolist() == [179, 0]


def test_histograms_are_those_of_numpy(tissue: Pixels) -> None:
    one, other = tissue[:, :256], noisy(tissue[:, 256:], 20)
    for kind, bins in (
        (LabHistogram, [(-2.0, 254.0), (-130.0, 126.0), (-130.0, 126.0)]),
        (HueHistogram, [(0.0, 256.0)]),
    ):
        gathered = []
        for image in (one, other):
            histogram = kind()
            for half in (image[:200], image[200:]):
                histogram.add(histogram.measure(half))
            gathered.append(histogram)
        planes = [lab(i) if kind is LabHistogram else opencv_hue(i)[..., None] for i in (one, other)]
        number = 64 if kind is LabHistogram else 10
        for channel, limits in enumerate(bins):
            counts = [np.histogram(plane[..., channel], number, limits)[0] for plane in planes]
            expected = np.corrcoef(*counts)[0, 1]
            assert correlations(*gathered)[channel] == pytest.approx(expected, abs=1e-9)
        assert correlations(gathered[0], gathered[0]) == pytest.approx(1)
        assert np.isnan(correlations(gathered[0], kind())).all()
