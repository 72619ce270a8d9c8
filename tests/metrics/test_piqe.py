"""PIQE against the published definition, block by block, and the authors' variant."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kin_cli.geometry import Pixels
from kin_cli.metrics.piqe import Piqe, PiqeOfAuthors, grey, normalized
from tests.helpers.pictures import blurred, mscn_coefficients, noisy, padded


def test_mscn_is_scipys_gaussian(large_tissue: Pixels) -> None:
    np.testing.assert_allclose(normalized(grey(padded(large_tissue, 3)))[0], mscn_coefficients(large_tissue), atol=1e-9)


def published_piqe(mscn: np.ndarray) -> float:
    """PIQE block by block, edge by edge and run by run, in MATLAB's order."""
    active, distortion = 0, 0.0
    for y in range(0, mscn.shape[0], 16):
        for x in range(0, mscn.shape[1], 16):
            block = mscn[y : y + 16, x : x + 16]
            variance = block.var(ddof=1)
            if variance <= 0.1:
                continue
            active += 1
            edges = (block[0], block[15], block[:, 0], block[:, 15])
            impaired = any(edge[i : i + 6].std(ddof=1) < 0.1 for edge in edges for i in range(11))
            centre = np.concatenate([block[:, 7], block[:, 8]]).std(ddof=1)
            rest = np.delete(block, 7, axis=1)
            ratio = centre / np.delete(rest, 8, axis=1).std(ddof=1)
            beta = abs(np.sqrt(variance) - ratio) / max(np.sqrt(variance), ratio)
            noise = np.sqrt(variance) > 2 * beta
            distortion += impaired * (1 - variance) + noise * variance
    return 100 * (1 + distortion) / (1 + active)


def authors_piqe(mscn: np.ndarray) -> float:
    """The KIN authors' variant: biased, squared, the lowest decile ten times."""
    scores, active = [], 0
    for y in range(0, mscn.shape[0], 16):
        for x in range(0, mscn.shape[1], 16):
            block = mscn[y : y + 16, x : x + 16]
            variance = block.var()
            if variance <= 0.1:
                continue
            active += 1
            edges = (block[0], block[15], block[:, 0], block[:, 15])
            impaired = any(edge[i : i + 6].std() < 0.1 for edge in edges for i in range(11))
            ratio = block[:, 7:9].std() / np.delete(block, (7, 8), axis=1).std()
            beta = abs(np.sqrt(variance) - ratio) / max(np.sqrt(variance), ratio)
            noise = np.sqrt(variance) > 2 * beta
            scores.append(impaired * (1 - variance) ** 2 + noise * variance**2)
    found = sorted(score for score in scores if score > 0)
    return 100 * (1 + 10 * sum(found[: int(0.1 * len(found))])) / (1 + active)


@pytest.mark.parametrize("change", [lambda p: blurred(p, 2), lambda p: noisy(p, 15)], ids=["blurred", "noisy"])
@pytest.mark.parametrize(("metric", "definition"), [(Piqe, published_piqe), (PiqeOfAuthors, authors_piqe)])
def test_piqe_is_the_published_one_however_it_is_cut(
    large_tissue: Pixels,
    change: Callable[[Pixels], Pixels],
    metric: type[Piqe],
    definition: Callable[[np.ndarray], float],
) -> None:
    changed = change(large_tissue)
    whole, parts = metric(), metric()
    framed = padded(changed, 3)
    whole.add(whole.measure(framed))
    for y in range(0, 672, 224):
        for x in range(0, 960, 480):
            parts.add(parts.measure(framed[y : y + 230, x : x + 486]))
    expected = definition(mscn_coefficients(changed))
    assert whole.values()[metric.name] == pytest.approx(expected, rel=1e-6)
    assert parts.values() == pytest.approx(whole.values(), rel=1e-6)
    assert whole.values()["piqe_blocks"] > 400


def test_piqe_refuses_parts_of_blocks_and_forgives_background() -> None:
    with pytest.raises(ValueError, match="16-px blocks"):
        Piqe().measure(np.zeros((47, 38, 3), np.uint8))
    background = Piqe()
    background.add(background.measure(np.full((38, 38, 3), 240, np.uint8)))
    assert background.values() == {"piqe": 100, "piqe_blocks": 0}
