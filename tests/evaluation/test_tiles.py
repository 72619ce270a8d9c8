"""Which tiles are measured, and how they are cut for each metric."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from kin_cli.errors import InputError
from kin_cli.evaluation.settings import Sampling, SlideChoice
from kin_cli.evaluation.tiles import Panel, opened, sampled_boxes
from kin_cli.geometry import Box, Pixels, Size
from kin_cli.progress import SilentProgress
from kin_cli.slide.tissue import TissueMask, tissue_mask

SIDE = 768  # of the pictures


def test_sampling_is_drawn_from_tissue_and_repeatable(pictures: dict[str, Path]) -> None:
    tissue = np.zeros((6, 6), np.bool_)
    tissue[1:5, 2:6] = True
    with opened(SlideChoice(pictures["slide"])) as view:
        mask = TissueMask(tissue, Size(SIDE, SIDE))
        every = sampled_boxes(view, mask, Sampling(tile_px=128))
        assert every == [Box(128 * col, 128 * row, 128, 128) for row in range(1, 5) for col in range(2, 6)]
        drawn = sampled_boxes(view, mask, Sampling(5, 1, 128))
        assert drawn == sampled_boxes(view, mask, Sampling(5, 1, 128))
        assert drawn != sampled_boxes(view, mask, Sampling(5, 2, 128))
        assert len(drawn) == len(set(drawn)) == 5
        assert set(drawn) < set(every)
        # cells that reach beyond the picture are no tiles: 768 is not a multiple of 160
        inside = sampled_boxes(view, tissue_mask(view, "none"), Sampling(tile_px=160))
        assert len(inside) == 16
        with pytest.raises(InputError, match="half tissue"):
            sampled_boxes(view, TissueMask(~tissue & False, Size(SIDE, SIDE)), Sampling())


class Recorder:
    """A metric that notes what it is shown, and by which thread."""

    def __init__(self, halo_px: int) -> None:
        self.halo_px = halo_px
        self.added: list[tuple[int, ...]] = []
        self.threads: set[int] = set()

    def measure(self, *tiles: Pixels) -> tuple[int, ...]:
        return tuple(int(tile[0, 0, 0]) for tile in tiles) + tiles[0].shape[:2]

    def add(self, part: tuple[int, ...]) -> None:
        self.threads.add(threading.get_ident())
        self.added.append(part)


def test_a_panel_reads_each_tile_once_and_cuts_every_metrics_halo() -> None:
    reads: list[Box] = []

    def read(box: Box) -> Pixels:
        reads.append(box)
        cols = np.arange(box.x, box.right)[None, :, None] % 256
        return np.broadcast_to(cols, (box.height, box.width, 3)).astype(np.uint8)

    plain, wide, pair = Recorder(0), Recorder(16), Recorder(5)
    boxes = [Box(32 * number, 0, 32, 32) for number in range(7)]
    Panel([plain, wide], [pair]).run(
        boxes, read, source=lambda box: 255 - read(box), stage="tiles", progress=SilentProgress(), workers=3
    )
    assert sorted(reads, key=lambda box: box.x) == [box.grown(16) for box in boxes for _ in range(2)]
    assert plain.added == [(32 * number, 32, 32) for number in range(7)]
    assert wide.added == [((32 * number - 16) % 256, 64, 64) for number in range(7)]
    assert pair.added == [((32 * n - 5) % 256, 255 - (32 * n - 5) % 256, 42, 42) for n in range(7)]
    assert plain.threads == {threading.get_ident()}
