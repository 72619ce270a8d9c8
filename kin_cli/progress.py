"""What long work tells whoever watches: stages with a total, and notes. ``commands`` draws them; nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """What a stage is told with."""

    def __call__(self, count: int, detail: str = "", /) -> None:
        """So many units are finished; ``detail`` is what there is to say about the last of them."""


class Progress(Protocol):
    """Receives the progress of a run."""

    def stage(self, name: str, total: int, unit: str = "tiles") -> AbstractContextManager[Advance]:
        """Open a stage of ``total`` units, named in the plural."""

    def note(self, message: str) -> None:
        """One line that the user should read."""


class SilentProgress:
    """Reports to nobody."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "tiles") -> Iterator[Advance]:  # noqa: ARG002
        """Count nothing."""
        yield lambda _count, _detail="": None

    def note(self, message: str) -> None:
        """Say nothing."""
