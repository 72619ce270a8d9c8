from __future__ import annotations

import threading
import time

import pytest

from kin_cli.concurrency import WorkQueue, prefetch


def test_results_come_in_order_whatever_their_duration() -> None:
    def slow_first(i: int) -> int:
        time.sleep(0.02 if i % 3 == 0 else 0)
        return i * i

    assert list(prefetch(slow_first, range(20), workers=4, ahead=6)) == [i * i for i in range(20)]


def test_no_more_than_the_bound_is_under_way() -> None:
    begun = 0
    lock = threading.Lock()

    def count(i: int) -> int:
        nonlocal begun
        with lock:
            begun += 1
        return i

    for consumed, _ in enumerate(prefetch(count, range(50), workers=3, ahead=5), start=1):
        time.sleep(0.001)
        assert begun <= consumed + 5


def test_the_first_failure_in_order_is_raised_and_the_rest_is_cancelled() -> None:
    begun: list[int] = []

    def fail(i: int) -> int:
        begun.append(i)
        if i == 3:
            raise OSError(f"tile {i}")
        return i

    results = prefetch(fail, range(1000), workers=2, ahead=4)
    with pytest.raises(OSError, match="tile 3"):
        list(results)
    assert len(begun) < 20
    assert threading.active_count() < 10


def test_leaving_early_waits_for_running_work_only() -> None:
    results = prefetch(lambda i: i, range(1000), workers=2, ahead=4)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("kin-read")]


def test_a_sink_consumes_everything() -> None:
    seen: list[int] = []
    with WorkQueue(seen.append, workers=3, limit=4) as queue:
        for i in range(100):
            queue.submit(i)
    assert sorted(seen) == list(range(100))


def test_a_sink_bounds_what_is_under_way() -> None:
    gate, under_way = threading.Semaphore(0), []

    def hold(i: int) -> None:
        gate.acquire()

    with WorkQueue(hold, workers=1, limit=3) as queue:
        for i in range(3):
            queue.submit(i)
        blocked = threading.Thread(target=lambda: (queue.submit(3), under_way.append(3)))
        blocked.start()
        blocked.join(0.05)
        assert not under_way
        for _ in range(4):
            gate.release()
        blocked.join(5)
        assert under_way == [3]


def test_a_sinks_failure_reaches_the_caller() -> None:
    def fail(i: int) -> None:
        raise ValueError(f"item {i}")

    def run() -> None:
        with WorkQueue(fail, workers=1, limit=2) as queue:
            for i in range(10):
                queue.submit(i)

    with pytest.raises(ValueError, match="item 0"):
        run()


def test_another_failure_is_not_hidden_by_a_sinks_own() -> None:
    def fail(_: int) -> None:
        raise ValueError("queue")

    def run() -> None:
        with WorkQueue(fail, workers=1, limit=2) as queue:
            queue.submit(1)
            raise KeyError("caller")

    with pytest.raises(KeyError):
        run()
