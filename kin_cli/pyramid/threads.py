"""Work on several threads whose results come in the order in which it was given out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def in_order(tasks: Iterable[Callable[[], Result]], *, workers: int) -> Generator[Result]:
    """The results of ``tasks`` in their order; close it (``contextlib.closing``) to stop before the end.

    A task that raises ends it with that error; those that run then are waited for, those that wait never start.
    Memory bound: at most 2 × ``workers`` tasks are under way or have a result that is not taken yet.
    """
    workers = max(1, workers)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="kin-pyramid")
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
