"""Locks around library functions that are not thread-safe, but that concurrent builds call.

`lock_library_functions` replaces the functions in their modules, so the locks also cover calls from
other libraries and from tenants' code. Each lock is held only for the duration of one call.
"""

import ast
import sys
import threading
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from blinker import Signal

FIXED_PYTHON = (3, 11, 8)
"""Before this version, `ast.parse` in two threads raises `SystemError: AST constructor recursion
depth mismatch` (CPython issue 106905). Werkzeug calls `ast.parse` for each URL builder."""

SIGNALS_LOCK = threading.RLock()
"""Protects the receivers of all blinker signals, which the apps of a process share. Without the
lock, `disconnect` iterates over a dictionary that another thread's `connect` can change. The lock
is reentrant, because the garbage collector can disconnect a receiver at any moment."""


@cache
def lock_library_functions() -> None:
    """Put the locks around the functions, once in each process."""
    if sys.version_info < FIXED_PYTHON:
        # Reentrant, because the garbage collector can run code of a tenant during the call.
        ast.parse = _locked(ast.parse, threading.RLock())
    for name in ("connect", "_disconnect"):
        setattr(Signal, name, _locked(getattr(Signal, name), SIGNALS_LOCK))


def _locked(function: Callable[..., Any], lock: threading.RLock) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        with lock:
            return function(*args, **options)

    return call
