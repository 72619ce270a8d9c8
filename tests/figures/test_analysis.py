"""``kin analyse`` against SciPy's distances over all pairs, by brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial import distance

from kin_cli.errors import InputError
from kin_cli.figures.analysis import (
    Analysis,
    AnalysisSettings,
    SimilarityByDistance,
    analyse,
    cosine,
    deviation_ratio,
    outside,
    quantiles,
)
from kin_cli.figures.plots import analysis_figure
from kin_cli.models.architectures import LayerBlock, layer_blocks
from kin_cli.models.checkpoint import load_generator
from kin_cli.models.exchange import exchange_norms
from kin_cli.norm.kernel import Kernel
from kin_cli.progress import SilentProgress
from tests.helpers.slides import write_photo
from tests.helpers.translations import settings

PATCH = 32
ROWS, COLS = 5, 7
BLOCKS = [LayerBlock("conv", 1, slice(0, 4)), LayerBlock("residual", 3, slice(4, 11))]


@pytest.fixture
def stats() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS * COLS, 2, 11)).astype(np.float32)


def places() -> np.ndarray:
    return np.array([(row, col) for row in range(ROWS) for col in range(COLS)], float)


def test_cosine_is_scipys(stats: np.ndarray) -> None:
    found = cosine(stats[0], stats[1:], blocks=BLOCKS)
    for n, other in enumerate(stats[1:]):
        for row in range(2):
            for b, block in enumerate(BLOCKS):
                pair = (stats[0, row, block.channels].astype(float), other[row, block.channels].astype(float))
                assert found[n, row, b] == pytest.approx(1 - distance.cosine(*pair), abs=1e-12)


def test_a_zero_vector_is_like_nothing_and_counts_nowhere(stats: np.ndarray) -> None:
    stats[1, 0, :4] = 0
    assert np.isnan(cosine(stats[0], stats[1:2], blocks=BLOCKS)[0, 0, 0])
    gathered = SimilarityByDistance(BLOCKS, reach=2)
    gathered.add(stats[0], stats[1:3], distances=np.array([1.0, 1.0]))
    curve = gathered.curve()
    assert curve.pairs[:, :, 0].tolist() == [[1, 2], [2, 2]]
    assert curve.mean[0, 0, 0] == pytest.approx(cosine(stats[0], stats[2:3], blocks=BLOCKS)[0, 0, 0])
    only = cosine(stats[0], stats[1:3], blocks=BLOCKS)[:, :1, :1]
    np.testing.assert_allclose(quantiles(only)[:, 0, 0], only[1, 0, 0])


def test_thumbnail_figures_are_what_they_say() -> None:
    patches = np.zeros((101, 2, 11), np.float32)
    patches[:] = np.arange(101)[:, None, None]
    one = np.full((2, 11), 50, np.float32)
    assert not outside(one, patches, blocks=BLOCKS).any()
    one[0, :2], one[1, 4:] = 97, 2
    np.testing.assert_allclose(outside(one, patches, blocks=BLOCKS), [[0.5, 0], [0, 1]])
    np.testing.assert_allclose(deviation_ratio(one, patches, blocks=BLOCKS), [1, 2 / 50])


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    return write_photo(file, (COLS * PATCH, ROWS * PATCH), coarse=(5, 4), seed=1, noise=(20,))


def analysis_settings(photo: Path, model: Path, folder: Path, **changes: object) -> AnalysisSettings:
    base = settings(photo, model, folder / "base.tif", patch_px=PATCH, tissue="auto", workers=1)
    return AnalysisSettings(base, folder / "table", **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def own(photo: Path, tiny_generator: Path) -> tuple[np.ndarray, list[LayerBlock]]:
    """Every patch's statistics, measured one by one."""
    generator = load_generator(tiny_generator)
    network = exchange_norms(generator.module)
    pixels = np.asarray(Image.open(photo))
    found = []
    for row, col in places().astype(int):
        tile = pixels[row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH]
        x = torch.from_numpy(tile.astype(np.float32)).permute(2, 0, 1)[None] * (2 / 255) - 1
        found.append(network.measure(x)[0].numpy())
    return np.stack(found).astype(float), layer_blocks(network.layers)


@pytest.fixture(scope="module")
def found(photo: Path, tiny_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analyse(analysis_settings(photo, tiny_generator, tmp_path_factory.mktemp("a")), SilentProgress())


def test_curves_are_those_of_all_pairs(found: Analysis, own: tuple[np.ndarray, list[LayerBlock]]) -> None:
    stats, blocks = own
    assert [block.name for block in found.blocks] == [block.name for block in blocks]
    apart = distance.pdist(places())
    classes = np.rint(apart)
    assert found.curve.pairs.sum(axis=2).tolist() == [[len(apart)] * len(blocks)] * 2
    for d, near in enumerate(sorted(set(classes))):
        chosen = classes == near
        assert found.curve.distance[d] == pytest.approx(apart[chosen].mean())
        for s in range(2):
            for b, block in enumerate(blocks):
                similarity = 1 - distance.pdist(stats[:, s, block.channels], "cosine")[chosen]
                assert found.curve.mean[s, b, d] == pytest.approx(similarity.mean(), abs=1e-5)
                assert found.curve.deviation[s, b, d] == pytest.approx(similarity.std(), abs=1e-4)
                assert found.curve.pairs[s, b, d] == chosen.sum()


def test_replacements_are_compared_with_every_patch(found: Analysis, own: tuple[np.ndarray, list[LayerBlock]]) -> None:
    stats, blocks = own
    average = stats.mean(axis=0)
    padded = np.pad(stats.reshape(ROWS, COLS, 2, -1), ((1, 1), (1, 1), (0, 0), (0, 0)), mode="edge")
    taps = Kernel.parse("gaussian:3").taps()
    smooth = sum(taps[i] * taps[j] * padded[i : i + ROWS, j : j + COLS] for i in range(3) for j in range(3)).reshape(
        stats.shape
    )
    names = [replacement.name for replacement in found.replacements]
    assert names == ["thumbnail", "all patches", "neighbourhood gaussian:3"]
    for s in range(2):
        for b, block in enumerate(blocks):
            channels = block.channels
            every = [1 - distance.cosine(one[s, channels], average[s, channels]) for one in stats]
            near = [
                1 - distance.cosine(one[s, channels], other[s, channels])
                for one, other in zip(stats, smooth, strict=True)
            ]
            for replacement, wanted in zip(found.replacements[1:], (every, near), strict=True):
                middle = np.quantile(wanted, (0.05, 0.25, 0.5, 0.75, 0.95))
                np.testing.assert_allclose(replacement.quantiles[:, s, b], middle, atol=1e-5)


def test_reach_and_draw_limit_the_pairs(photo: Path, tiny_generator: Path, tmp_path: Path, found: Analysis) -> None:
    near = analyse(analysis_settings(photo, tiny_generator, tmp_path, reach_px=2 * PATCH), SilentProgress())
    assert near.curve.distance.max() < 2.5
    np.testing.assert_allclose(near.curve.mean, found.curve.mean[:, :, :2])
    drawn = analyse(analysis_settings(photo, tiny_generator, tmp_path, patches=5, reach_px=10_000), SilentProgress())
    total = ROWS * COLS
    assert (drawn.patches, drawn.drawn) == (total, 5)
    assert drawn.curve.pairs[0, 0].sum() == 5 * (total - 5) + 5 * 4 // 2  # each pair once


def test_the_figure_shows_the_curves_and_the_boxes(found: Analysis) -> None:
    figure = analysis_figure(found)
    curves = figure.axes[1].get_lines()
    assert [line.get_label() for line in curves] == [block.name for block in found.blocks]
    np.testing.assert_array_equal(curves[2].get_ydata(), found.curve.mean[1, 2])
    assert len(figure.axes[2].patches) == 3 * len(found.blocks)


def test_too_few_patches_are_refused(photo: Path, tiny_generator: Path, tmp_path: Path) -> None:
    Image.open(photo).crop((0, 0, PATCH, PATCH)).save(tmp_path / "one.png")
    with pytest.raises(InputError, match="no pairs"):
        analyse(analysis_settings(tmp_path / "one.png", tiny_generator, tmp_path), SilentProgress())
