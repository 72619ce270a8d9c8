"""The settings of a study, ``study.toml``: readers, challenges, and the slides of each item."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kin_cli.errors import UsageError
from kin_cli.geometry import Box
from kin_cli.store.files import read_toml

CHALLENGES = ("fidelity", "quality")
"""The challenges, in the order in which readers meet them: quality shows which image is the real one."""

_SECONDS = {"fidelity": 10.0, "quality": 30.0}  # of the KIN paper
_MOST_SECONDS, _MOST_READERS, _MOST_METHODS, _MOST_REGIONS = 3600.0, 500, 8, 1000
_KEYS = {"title", "seed", "readers", "practice", "repeat_every", "challenges", "fidelity", "quality", "item"}
_ITEM_KEYS = {
    "name", "dataset", "source", "reference", "methods", "regions", "reference_regions", "region_px", "practice",
    "source_mpp", "reference_mpp",
}  # fmt: skip
_NAME = re.compile(r"[\w .+-]{1,60}")


@dataclass(frozen=True)
class ItemSettings:
    """The slides of one or more items.

    Attributes:
        name: what results call it.
        dataset: the data set that it counts for.
        source: the slide that was translated.
        reference: a real slide of the target stain.
        methods: the translated slide of each method.
        regions: boxes of level 0 of the source, one item each; a number: so many, drawn where there is tissue; empty:
            the whole slide.
        reference_regions: the boxes of the reference that go with them, in its level 0.
        region_px: side of the regions that are drawn.
        practice: whether it serves for practice only.
        source_mpp: µm per pixel of the source, if its file states none or a wrong one; ``reference_mpp`` likewise.
    """

    name: str
    dataset: str
    source: Path
    reference: Path
    methods: Mapping[str, Path]
    regions: tuple[Box, ...] | int = ()
    reference_regions: tuple[Box, ...] = ()
    region_px: int = 1024
    practice: bool = False
    source_mpp: float | None = None
    reference_mpp: float | None = None


@dataclass(frozen=True)
class StudySettings:
    """A study, as its author describes it.

    Attributes:
        title: what readers see.
        seed: decides all orders.
        readers: their names, which only the author sees.
        practice: trials for practice at the beginning of each challenge.
        repeat_every: of so many items one is shown again; 0: none.
        challenges: which there are, in their order.
        seconds: time for an answer, of each challenge.
        one_method: in the fidelity challenge each reader sees one method per item, instead of all of them.
        items: the slides.
    """

    title: str
    seed: int
    readers: tuple[str, ...]
    practice: int
    repeat_every: int
    challenges: tuple[str, ...]
    seconds: Mapping[str, float]
    one_method: bool
    items: tuple[ItemSettings, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of all methods, in the order of their first appearance."""
        return tuple(dict.fromkeys(name for item in self.items for name in item.methods))


def read_settings(file: Path) -> StudySettings:
    """Read ``study.toml``; paths in it are relative to its folder.

    Raises:
        UsageError: the file cannot be read, a key is unknown, missing, or has a value that makes no sense.
    """
    table = _Table(read_toml(file, hint="kin study make needs a TOML file, see docs/study.md"), str(file))
    table.refuse_unknown(_KEYS)
    challenges = tuple(dict.fromkeys(table.texts("challenges", list(CHALLENGES))))
    if not challenges or not set(challenges) <= set(CHALLENGES):
        raise table.wrong("challenges", f"names other challenges than {' and '.join(CHALLENGES)}")
    entries = table.values.get("item")
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{file}: there is no [[item]]", "each item names a source, a reference and methods")
    items = tuple(_item(_Table(entry, f"{file}, item {n}"), file.parent) for n, entry in enumerate(entries, start=1))
    names = [item.name for item in items]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{file}: two items have the name '{doubled[0]}'", "give each a name of its own")
    if all(item.practice for item in items):
        raise UsageError(f"{file}: all items are for practice", "leave out practice = true in those that count")
    for item in items:
        if "quality" in challenges and len(item.methods) < 2:
            hint = 'name two or more methods, or set challenges = ["fidelity"]'
            raise UsageError(f"{file}: item '{item.name}' has one method, so there is nothing to choose from", hint)
    parts = {name: _Table(table.values.get(name, {}), f"{file}, [{name}]") for name in CHALLENGES}
    for name, part in parts.items():
        part.refuse_unknown({"seconds", "methods"} if name == "fidelity" else {"seconds"})
    per_item = parts["fidelity"].text("methods", "all")
    if per_item not in ("all", "one"):
        raise parts["fidelity"].wrong("methods", 'is neither "all" nor "one"')
    return StudySettings(
        title=table.text("title", "Reader study"),
        seed=table.whole("seed", 0, least=0),
        readers=_readers(table),
        practice=table.whole("practice", 2, least=0, most=20),
        repeat_every=table.whole("repeat_every", 10, least=0),
        challenges=challenges,
        seconds={name: part.number("seconds", _SECONDS[name], most=_MOST_SECONDS) for name, part in parts.items()},
        one_method=per_item == "one",
        items=items,
    )


@dataclass(frozen=True)
class _Table:
    """A table of a TOML file; ``place`` tells in messages where it stands."""

    values: Any
    place: str

    def __post_init__(self) -> None:
        if not isinstance(self.values, dict):
            raise UsageError(f"{self.place}: is no table of keys and values")

    def wrong(self, key: str, what: str) -> UsageError:
        return UsageError(f"{self.place}: '{key}' {what}")

    def refuse_unknown(self, known: set[str]) -> None:
        for key in self.values:
            if key not in known:
                raise UsageError(f"{self.place}: unknown key '{key}'", f"known keys: {', '.join(sorted(known))}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if value is None:
            raise UsageError(f"{self.place}: the key '{key}' is missing")
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise self.wrong(key, "is not a text")
        return value.strip()

    def texts(self, key: str, default: list[str]) -> list[str]:
        value = self.values.get(key, default)
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self.wrong(key, "is not a list of texts")
        return value

    def whole(self, key: str, default: int, *, least: int = 1, most: int = 2**63 - 1) -> int:
        value = self.values.get(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"is not a whole number from {least} upwards")
        return value

    def number(self, key: str, default: float | None, *, most: float = math.inf) -> Any:
        value = self.values.get(key, default)
        if value is None:
            return None
        if type(value) not in (int, float) or not 0 < value <= most or not math.isfinite(value):
            raise self.wrong(key, "is not a positive number" + (f" up to {most:g}" if math.isfinite(most) else ""))
        return float(value)


def _readers(table: _Table) -> tuple[str, ...]:
    given = table.values.get("readers", 1)
    if type(given) is int and 1 <= given <= _MOST_READERS:
        return tuple(f"reader-{number}" for number in range(1, given + 1))
    names = [] if type(given) is int else table.texts("readers", [])
    if not 1 <= len(names) <= _MOST_READERS or len(set(names)) < len(names):
        raise table.wrong("readers", f"is neither a number from 1 to {_MOST_READERS} nor a list of different names")
    for name in names:
        if not _NAME.fullmatch(name):
            raise table.wrong("readers", f"holds a name with other signs than letters, digits, space . _ + -: {name!r}")
    return tuple(names)


def _item(table: _Table, folder: Path) -> ItemSettings:
    table.refuse_unknown(_ITEM_KEYS)
    methods = table.values.get("methods")
    if not isinstance(methods, dict) or not 1 <= len(methods) <= _MOST_METHODS:
        raise table.wrong("methods", f"is no table of 1 to {_MOST_METHODS} names and files")
    for name, path in methods.items():
        if not _NAME.fullmatch(name) or not isinstance(path, str):
            raise table.wrong("methods", f"does not give a file for each name: {name!r}")
    regions, beside = _regions(table, "regions"), _regions(table, "reference_regions")
    if isinstance(beside, int) or (beside and (isinstance(regions, int) or len(regions) != len(beside))):
        raise table.wrong("reference_regions", "does not hold one region for each of 'regions'")
    practice = table.values.get("practice", False)
    if not isinstance(practice, bool):
        raise table.wrong("practice", "is neither true nor false")
    source = folder / table.text("source")
    return ItemSettings(
        name=table.text("name", source.name),
        dataset=table.text("dataset", "all"),
        source=source,
        reference=folder / table.text("reference"),
        methods={name: folder / path for name, path in methods.items()},
        regions=regions,
        reference_regions=beside,
        region_px=table.whole("region_px", 1024, least=64),
        practice=practice,
        source_mpp=table.number("source_mpp", None),
        reference_mpp=table.number("reference_mpp", None),
    )


def _regions(table: _Table, key: str) -> tuple[Box, ...] | int:
    given = table.values.get(key, [])
    if type(given) is int and 1 <= given <= _MOST_REGIONS:
        return given
    try:
        boxes = tuple(Box(*entry) for entry in given)
        whole = all(type(side) is int for entry in given for side in entry)
    except (TypeError, ValueError):
        whole = False
        boxes = ()
    if not whole or len(boxes) > _MOST_REGIONS or any(box.empty for box in boxes):
        raise table.wrong(key, "is neither a number nor a list of [x, y, width, height] in whole pixels")
    return boxes
