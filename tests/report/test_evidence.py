"""The evidence of a report: where it looks and what it compares."""

from __future__ import annotations

import pytest

from kin_cli.evaluation.seams import close_up
from kin_cli.geometry import Size
from kin_cli.metrics.seams import SeamLine


@pytest.mark.parametrize(
    ("line", "corner"),
    [
        (SeamLine("vertical", 1024, 512, 512, 0, 0, 0), (768, 488)),
        (SeamLine("horizontal", 1024, 512, 512, 0, 0, 0), (1024, 256)),
        (SeamLine("vertical", 64, 0, 64, 0, 0, 0), (0, 0)),
        (SeamLine("horizontal", 1920, 960, 64, 0, 0, 0), (1488, 488)),
    ],
)
def test_a_close_up_has_the_border_in_the_middle_or_lies_at_the_edge(line: SeamLine, corner: tuple[int, int]) -> None:
    box = close_up(*line.middle, side=512, size=Size(2000, 1000))
    assert (box.x, box.y, box.width, box.height) == (*corner, 512, 512)
