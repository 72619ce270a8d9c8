"""What long work tells whoever watches: stages with a total, and notes. ``commands`` draws them; nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Reporter(Protocol):
    """Receives the progress of a run."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Open a stage of ``total`` tiles; the value is called with the number of tiles just finished."""

    def note(self, message: str) -> None:
        """One line that the user should read."""


class SilentReporter:
    """Reports to nobody."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        """Count nothing."""
        yield lambda _: None

    def note(self, message: str) -> None:
        """Say nothing."""
