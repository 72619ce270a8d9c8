"""Tasks of a batch never write one file, and never replace an input."""

from __future__ import annotations

from pathlib import Path

import pytest

from kin_cli.batch.tasks import SlideTask, refuse_collisions
from kin_cli.errors import UsageError

OUT = Path("out")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (SlideTask(Path("a.svs"), OUT / "a.tif"), SlideTask(Path("b/a.svs"), OUT / "a.tif")),
        (SlideTask(Path("a.svs"), OUT / "A.tif"), SlideTask(Path("b.svs"), OUT / "a.tif")),
        (SlideTask(Path("a.svs"), OUT / "x.tif"), SlideTask(Path("b.svs"), OUT / "sub" / ".." / "x.tif")),
        (SlideTask(Path("a.svs"), OUT / "a.tif", 0.5), SlideTask(Path("a.svs"), OUT / "a.tif", 0.25)),
    ],
)
def test_two_slides_never_write_one_file(first: SlideTask, second: SlideTask) -> None:
    refuse_collisions([first, first])
    with pytest.raises(UsageError, match="would both be written to"):
        refuse_collisions([first, second])


def test_outputs_of_one_name_and_other_endings_have_records_of_their_own() -> None:
    refuse_collisions([SlideTask(Path("a.svs"), OUT / "a.tif"), SlideTask(Path("b.svs"), OUT / "a.png")])


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (SlideTask(Path("b.tif"), OUT / "b.tif"), "slide"),
        (SlideTask(Path("c.tif"), OUT / "b.tif", mask=Path("b.tif")), "mask"),
        (SlideTask(Path("c.tif"), OUT / "b.tif", model=Path("b.tif.json")), "generator"),
    ],
)
def test_an_input_is_never_replaced(other: SlideTask, what: str) -> None:
    with pytest.raises(UsageError, match=f"is a {what} of this batch"):
        refuse_collisions([SlideTask(Path("a.tif"), Path("b.tif")), other])
