"""Thread pools with bounded memory: results in order, limited queues, and the first failure raised to the caller."""

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
    """Number of cores that this process may use, as set by a scheduler or taskset, rather than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1  # macOS has no affinity


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Generator[Result]:
    """Yield ``function(item)`` for every item, in order, computed ahead by ``workers`` threads.

    Memory bound: at most ``ahead`` + 1 results exist at a time. The first failure, in the order of the items, is raised
    to the caller. Leaving the iterator early cancels items not yet started and waits for the running ones.
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
    """Threads that call ``function`` on submitted items; ``submit`` waits while ``limit`` items are unfinished.

    Memory bound: ``limit`` items. The first failure is raised by the next ``submit`` or at the end of the ``with``.
    """

    def __init__(self, function: Callable[[Item], None], *, workers: int, limit: int) -> None:
        self._function, self._limit = function, limit
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="kin-write")
        self._pending: deque[Future[None]] = deque()

    def submit(self, item: Item) -> None:
        """Add an item. Raises the failure of an earlier item, if any."""
        while self._pending and (len(self._pending) >= self._limit or self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._function, item))

    def __enter__(self) -> WorkQueue[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # after a failure of the caller, wait for running items only
            while self._pending and error is None:
                self._pending.popleft().result()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
