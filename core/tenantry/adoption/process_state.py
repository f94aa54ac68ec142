"""Compares what belongs to the whole process before and after the application is built."""

import locale
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from tenantry.adoption.fact import Fact
from tenantry.private_code.names import plain_name, tenant_of

GRACE_S = 0.5
"""How long the threads of a closed app may take to end, in seconds."""


def _file_mode_mask() -> int:
    mask = os.umask(0o077)  # Python can read the mask only by setting it
    os.umask(mask)
    return mask


_STATE: Mapping[str, Callable[[], object]] = {
    "the current folder": os.getcwd,
    "the default timeout of sockets": socket.getdefaulttimeout,
    "the file mode mask (umask)": _file_mode_mask,
    "the locale": lambda: locale.setlocale(locale.LC_ALL),
    "the search path of modules (sys.path)": lambda: tuple(sys.path),
    "the time zone": lambda: time.tzname,
    "the limit of recursion": sys.getrecursionlimit,
}


class ProcessState:
    """The state of the process at one time, such as its current folder and signal handlers."""

    def __init__(self) -> None:
        self._values = dict(_read_state())
        self._threads = {*threading.enumerate()}

    def changes(self) -> Iterator[Fact]:
        """Yield a fact for each part of the state that has changed since."""
        for name, value in _read_state():
            before = self._values[name]
            if value != before:
                yield Fact("state", name, _difference(before, value))

    def threads_left(self) -> Iterator[Fact]:
        """Yield a fact for each thread of the application that has been started and still runs."""
        deadline = time.monotonic() + GRACE_S
        new = [thread for thread in threading.enumerate() if thread not in self._threads]
        for thread in new:
            thread.join(max(deadline - time.monotonic(), 0))
        left = [_code_of(thread) for thread in new if thread.is_alive()]
        for code in dict.fromkeys(left):
            # A library can start one thread for the whole process, such as a monitor.
            if tenant_of(code) or left.count(code) > 1:
                yield Fact("thread", plain_name(code))


def _read_state() -> Iterator[tuple[str, object]]:
    for name, read in _STATE.items():
        value: object = None
        with suppress(OSError):  # the current folder has been deleted
            value = read()
        yield name, value
    for number in sorted(signal.valid_signals()):
        if number in {*signal.Signals}:
            yield f"the handler of {signal.Signals(number).name}", signal.getsignal(number)


def _difference(before: object, after: object) -> str:
    if isinstance(before, tuple) and isinstance(after, tuple):
        return ", ".join(str(one) for one in after if one not in before)
    return after if isinstance(after, str) else ""


def _code_of(thread: threading.Thread) -> str:
    """Return the module and the name of the function that a thread runs."""
    target = getattr(thread, "_target", None) or getattr(thread, "function", None)
    code = target or type(thread)  # a subclass of Thread has no target
    return f"{getattr(code, '__module__', '')}.{getattr(code, '__qualname__', repr(code))}"
