"""The threads that serve requests: who goes next, how many there are, and how they end."""

import threading
from collections.abc import Iterator

import pytest

from servers import DEADLINE_S, wait_until
from tenantry.server.thread_pool import ThreadPool


class _Served:
    """What is served, each when it is told to end."""

    def __init__(self) -> None:
        self.by: dict[str, threading.Thread] = {}
        self._ends: dict[str, threading.Event] = {}

    def serve(self, item: str) -> None:
        """Begin with an item, and go on until its end."""
        end = self._ends[item] = threading.Event()
        self.by[item] = threading.current_thread()
        end.wait(DEADLINE_S)

    def end(self, item: str) -> None:
        """Let an item end."""
        wait_until(lambda: item in self.by)
        self._ends[item].set()


@pytest.fixture(name="served")
def _served() -> _Served:
    return _Served()


@pytest.fixture(name="threads")
def _threads(served: _Served) -> Iterator[ThreadPool[str]]:
    """Return two threads; what is in them ends with the test."""
    threads = ThreadPool(2, served.serve)
    yield threads
    threads.shutdown()
    for item in served.by:
        served.end(item)


def _idle(threads: ThreadPool[str]) -> int:
    return len(threads._idle)


def test_as_many_as_there_are_threads_are_served_at_once(
    threads: ThreadPool[str], served: _Served
) -> None:
    """The third waits, and comes when one has ended."""
    for item in "abc":
        threads.do(item)
    wait_until(lambda: len(served.by) == 2)
    first = set(served.by)
    served.end("a")
    wait_until(lambda: "c" in served.by)

    assert {"a", "b"} == first
    assert served.by["a"] is served.by["c"]


def test_who_was_idle_last_goes_first(threads: ThreadPool[str], served: _Served) -> None:
    """A third request, after two at once, is served by the thread of the one that ended last."""
    for item in "ab":
        threads.do(item)
    for number, item in enumerate("ab", start=1):
        served.end(item)
        wait_until(lambda number=number: _idle(threads) == number)
    threads.do("c")
    wait_until(lambda: "c" in served.by)

    assert served.by["b"] is served.by["c"]


def test_one_at_a_time_needs_one_thread(threads: ThreadPool[str], served: _Served) -> None:
    """No other is started while one is idle."""
    for item in "abc":
        threads.do(item)
        served.end(item)
        wait_until(lambda: _idle(threads) == 1)

    assert 1 == len(set(served.by.values()))


def test_who_has_not_begun_comes_back(threads: ThreadPool[str], served: _Served) -> None:
    """At the end what waits is told of, what runs goes on, and nothing more is taken."""
    for item in "abcd":
        threads.do(item)
    wait_until(lambda: len(served.by) == 2)

    assert (["c", "d"], False) == (threads.shutdown(), threads.do("e"))
    assert {"a", "b"} == set(served.by)


def test_idle_threads_end_with_the_shutdown(threads: ThreadPool[str], served: _Served) -> None:
    """And the others after what they serve."""
    threads.do("a")
    served.end("a")
    wait_until(lambda: _idle(threads) == 1)
    threads.do("b")
    threads.do("c")
    threads.shutdown()
    served.end("b")
    served.end("c")
    for thread in served.by.values():
        thread.join(DEADLINE_S)

    assert [False] * 3 == [thread.is_alive() for thread in served.by.values()]


def test_without_another_thread_to_be_had_a_request_waits(
    threads: ThreadPool[str], served: _Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system has a limit; those that are there serve all. With none it is said."""

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


def test_a_thread_outlives_what_it_serves(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever comes out of it, `SystemExit` too, is logged."""
    served = []

    def fail_once(item: str) -> None:
        served.append(item)
        if item == "a":
            raise SystemExit(3)

    threads = ThreadPool(1, fail_once)
    threads.do("a")
    threads.do("b")
    wait_until(lambda: len(served) == 2 and _idle(threads) == 1)
    threads.shutdown()

    assert ["a", "b"] == served
    assert ["worker.request_lost"] == [record.message for record in caplog.records]
