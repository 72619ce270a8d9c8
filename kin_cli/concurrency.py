"""Bounded stages between threads: results in order, nothing piles up, the first failure is the one that is raised."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may run on, as a scheduler or taskset allots them; not those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1  # macOS has no affinity


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Generator[Result]:
    """Results of ``function`` for every item, in order, computed by ``workers`` threads while the caller works.

    Memory bound: at most ``ahead`` + 1 results exist at a time. The first failure, in the items' order, is raised to
    the caller; leaving the iterator early cancels what has not begun and waits for what has.
    """
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="kin-ahead")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class WorkQueue(Generic[Item]):
    """Threads that consume what the caller submits; ``submit`` waits while ``limit`` items are under way.

    Memory bound: ``limit`` items. The first failure is raised by the next ``submit`` or at the end of the ``with``.
    """

    def __init__(self, function: Callable[[Item], None], *, workers: int, limit: int) -> None:
        self._function, self._limit = function, limit
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="kin-write")
        self._pending: deque[Future[None]] = deque()

    def submit(self, item: Item) -> None:
        """Hand over one item; raises what an earlier one failed with."""
        while self._pending and (len(self._pending) >= self._limit or self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._function, item))

    def __enter__(self) -> WorkQueue[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # After a failure elsewhere only what is already running is waited for.
            while self._pending and error is None:
                self._pending.popleft().result()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
