"""The pool of threads that serve requests: order of items, number of threads, and shutdown."""

import threading
from collections.abc import Iterator

import pytest

from servers import DEADLINE_S, wait_until
from tenantry.server.thread_pool import ThreadPool


class _Work:
    """Items that pool threads work on until the test ends the item."""

    def __init__(self) -> None:
        self.by: dict[str, threading.Thread] = {}
        self._ends: dict[str, threading.Event] = {}

    def serve(self, item: str) -> None:
        """Work on an item until the test ends the item."""
        end = self._ends[item] = threading.Event()
        self.by[item] = threading.current_thread()
        end.wait(DEADLINE_S)

    def end(self, item: str) -> None:
        """Wait until the item has a thread, and end the item."""
        wait_until(lambda: item in self.by)
        self._ends[item].set()


@pytest.fixture(name="served")
def _served() -> _Work:
    return _Work()


@pytest.fixture(name="threads")
def _threads(served: _Work) -> Iterator[ThreadPool[str]]:
    """Return a pool of two threads. The fixture ends the items of the pool."""
    threads = ThreadPool(2, served.serve)
    yield threads
    threads.close()
    for item in served.by:
        served.end(item)


def _idle(threads: ThreadPool[str]) -> int:
    return len(threads._idle)


def test_an_item_waits_until_a_thread_is_free(threads: ThreadPool[str], served: _Work) -> None:
    """Two threads work on two items; the third item starts when one of the two items ends."""
    for item in "abc":
        threads.do(item)
    wait_until(lambda: len(served.by) == 2)
    first = set(served.by)
    served.end("a")
    wait_until(lambda: "c" in served.by)

    assert {"a", "b"} == first
    assert served.by["a"] is served.by["c"]


def test_a_first_item_overtakes_waiting_items(threads: ThreadPool[str], served: _Work) -> None:
    """An item with `is_first` gets the next free thread, before items that wait longer."""
    for item in "abc":
        threads.do(item)
    threads.do("first", is_first=True)
    wait_until(lambda: len(served.by) == 2)
    served.end("a")
    wait_until(lambda: len(served.by) == 3)

    assert {"a", "b", "first"} == set(served.by)
    served.end("first")
    wait_until(lambda: "c" in served.by)


def test_the_most_recently_idle_thread_is_used_first(
    threads: ThreadPool[str], served: _Work
) -> None:
    """The next item goes to the thread that became idle last."""
    for item in "ab":
        threads.do(item)
    for number, item in enumerate("ab", start=1):
        served.end(item)
        wait_until(lambda number=number: _idle(threads) == number)
    threads.do("c")
    wait_until(lambda: "c" in served.by)

    assert served.by["b"] is served.by["c"]


def test_an_idle_thread_is_reused(threads: ThreadPool[str], served: _Work) -> None:
    """Three items in sequence run on the same thread."""
    for item in "abc":
        threads.do(item)
        served.end(item)
        wait_until(lambda: _idle(threads) == 1)

    assert 1 == len(set(served.by.values()))


def test_threads_end_after_close(threads: ThreadPool[str], served: _Work) -> None:
    """Idle threads end at once, busy threads after the current item; waiting items are dropped."""
    threads.do("a")
    served.end("a")
    wait_until(lambda: _idle(threads) == 1)
    threads.do("b")
    threads.do("c")
    threads.do("d")
    wait_until(lambda: len(served.by) == 3)
    threads.close()
    served.end("b")
    served.end("c")
    for thread in served.by.values():
        thread.join(DEADLINE_S)

    assert [False] * 3 == [thread.is_alive() for thread in served.by.values()]


def test_an_item_waits_if_no_thread_can_be_started(
    threads: ThreadPool[str], served: _Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Existing threads serve all items; without any thread, `do` raises."""

    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    threads.do("a")
    wait_until(lambda: "a" in served.by)
    monkeypatch.setattr(threading.Thread, "start", fail)
    threads.do("b")
    served.end("a")
    wait_until(lambda: "b" in served.by)

    assert served.by["a"] is served.by["b"]
    with pytest.raises(RuntimeError):
        ThreadPool(2, served.serve).do("c")


def test_a_thread_survives_an_exception(caplog: pytest.LogCaptureFixture) -> None:
    """An exception that an item raises, even `SystemExit`, is logged, and the thread continues."""
    served = []

    def fail_once(item: str) -> None:
        served.append(item)
        if item == "a":
            raise SystemExit(3)

    threads = ThreadPool(1, fail_once)
    threads.do("a")
    threads.do("b")
    wait_until(lambda: len(served) == 2 and _idle(threads) == 1)
    threads.close()

    assert ["a", "b"] == served
    assert ["worker.request_lost"] == [record.message for record in caplog.records]
