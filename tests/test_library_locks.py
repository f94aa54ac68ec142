"""Functions of Python and of libraries work when several builds call the functions concurrently."""

import ast
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from blinker import Signal

from tenantry.library_locks import lock_library_functions

THREADS = 8
SOURCE = "def build(self, *, item, shop=(1, 2)):\n    return f'/{item}/{shop}'\n" * 100


@pytest.fixture(autouse=True)
def many_thread_switches() -> Iterator[None]:
    """Let threads switch often, and let each garbage collection run Python code."""
    lock_library_functions()
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()

    def collect(*_: object) -> None:
        sum(range(50))

    gc.callbacks.append(collect)
    gc.set_threshold(50)
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)
    gc.callbacks.remove(collect)


def _at_once(act: Callable[[], object]) -> None:
    """Call a function in several threads at the same time, and raise the first exception."""
    barrier = threading.Barrier(THREADS)

    def begin() -> None:
        barrier.wait(30)
        act()

    with ThreadPoolExecutor(THREADS) as pool:
        for result in [pool.submit(begin) for _ in range(THREADS)]:
            result.result()


def test_threads_can_parse_at_the_same_time() -> None:
    """`ast.parse` works in several threads, even before Python 3.11.8."""
    _at_once(lambda: [ast.parse(SOURCE) for _ in range(5)])


def test_threads_can_connect_receivers_at_the_same_time() -> None:
    """A thread disconnects a receiver from all senders while other threads connect receivers."""
    signal = Signal()

    def connect_and_disconnect() -> None:
        def receive(_: object) -> None: ...

        for _ in range(200):
            sender = object()
            signal.connect(receive, sender)
            signal.connect(receive)
            signal.disconnect(receive)

    _at_once(connect_and_disconnect)

    assert not signal.receivers
