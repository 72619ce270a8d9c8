"""The engines of a run: batches are dealt to whichever is free, results come back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import TypeVar

from kin_cli.passes.engine import Engine
from kin_cli.pipeline.reporting import Reporter
from kin_cli.pipeline.stages import prefetch

Item = TypeVar("Item")
Result = TypeVar("Result")

_LANES = {"cpu": 1, "cuda": 2}  # on a GPU one batch is launched while the results of another are on their way


class Fleet:
    """Engines with the same generator and settings, one for each device.

    Which engine takes a batch changes nothing in its results, if the devices are of one kind.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = tuple(engines)
        self.channels, self.stride = engines[0].channels, engines[0].stride
        self._lanes = [engine for engine in engines for _ in range(_LANES[engine.device.type])]

    @property
    def first(self) -> Engine:
        """The engine of the first device, for what is done once."""
        return self.engines[0]

    def run(
        self, work: Callable[[Engine, Item], Result], batches: Iterable[Item], *, reporter: Reporter
    ) -> Iterator[Result]:
        """``work`` with a free engine for every batch, in order.

        Memory bound: two batches and their results for each lane, of which a GPU has two and a CPU one.
        """
        free: SimpleQueue[Engine] = SimpleQueue()
        for engine in self._lanes:
            engine.tell = reporter.note
            free.put(engine)

        def with_free_engine(batch: Item) -> Result:
            engine = free.get()
            try:
                return work(engine, batch)
            finally:
                free.put(engine)

        return prefetch(with_free_engine, batches, workers=len(self._lanes), ahead=2 * len(self._lanes))
