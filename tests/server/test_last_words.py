"""Last words: which thread ended a process, read when it is gone."""

import ctypes
import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from tenantry.server.last_words import LastWords


@pytest.fixture(name="words")
def _words() -> Iterator[LastWords]:
    words = LastWords()
    yield words
    words.close()
    words.close()


def ended(words: LastWords, act: Callable[[], object]) -> tuple[bool, int]:
    """Let a thread of a process do something; return whether it is named, and the exit code."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        faulthandler.disable()  # pytest's
        words.listen()

        def end() -> None:
            os.write(writing, threading.get_ident().to_bytes(8, "big"))
            act()

        thread = threading.Thread(target=end)
        thread.start()
        thread.join()
        signal.raise_signal(signal.SIGKILL)  # which tells nobody
    os.close(writing)
    ident = int.from_bytes(os.read(reading, 8), "big")
    os.close(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return words.thread() == ident, code


def _let_a_child_exit() -> None:
    child = os.fork()
    if not child:
        os._exit(3)
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("act", "is_named", "code"),
    [
        (lambda: os._exit(7), True, 7),
        (lambda: os._exit(3), True, 1),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), True, -signal.SIGKILL),
        (lambda: ctypes.string_at(0), True, -signal.SIGSEGV),
        (os.abort, True, -signal.SIGABRT),
        (_let_a_child_exit, False, -signal.SIGKILL),
        (lambda: os.kill(os.getpid(), 0), False, -signal.SIGKILL),
    ],
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_who_ends_its_process_is_named(
    words: LastWords, act: Callable[[], object], is_named: bool, code: int
) -> None:
    """By a crash, or by its own will, with no code that would end the server; not by a child."""
    assert (is_named, code) == ended(words, act)
