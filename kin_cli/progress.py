"""Progress of long work: stages with a total, and notes. Only ``commands`` draws them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Callable that advances a stage."""

    def __call__(self, count: int, detail: str = "", /) -> None:
        """Count ``count`` more units as finished; ``detail`` describes the last of them."""


class Progress(Protocol):
    """Receiver of the progress of a run."""

    def outlook(self, work: Mapping[str, tuple[int, float]]) -> None:
        """Tell which stages are ahead: their number of units, and the relative cost of a unit.

        From it the time left is told over all stages. A stage that is not named costs nothing worth telling.
        """

    def stage(self, name: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Open a stage of ``total`` units; ``unit`` is their name in the plural."""

    def note(self, message: str) -> None:
        """Show one line to the user."""


class SilentProgress:
    """Progress that is not shown."""

    def outlook(self, work: Mapping[str, tuple[int, float]]) -> None:
        """Ignore what is ahead."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:  # noqa: ARG002
        """Open a stage that ignores its advances."""
        yield lambda _count, _detail="": None

    def note(self, message: str) -> None:
        """Ignore the message."""


class LoggedProgress(SilentProgress):
    """Progress of a Python program: stages are not shown, notes are warnings of Python's ``logging``."""

    def note(self, message: str) -> None:
        """Log the message."""
        logging.getLogger("kin_cli").warning(message)
