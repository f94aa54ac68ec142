"""Who hears Flask's signals: an endpoint hears its own app's only.

`request_started.connect(f)` without a sender hears the requests of every app in the process.
"""

import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import blinker
import flask.signals
from blinker import ANY, Signal
from blinker.base import ANY_ID
from flask import Flask

from tenantry.errors import EndpointError

_FLASKS: tuple[Signal, ...] = tuple(
    one for one in vars(flask.signals).values() if isinstance(one, Signal)
)


def confine_receivers(app: Flask, endpoint: str, package: str) -> None:
    """Let the receivers that an endpoint has connected for any sender hear `app` only.

    Args:
        app: the app that it was loaded for; Flask's signals come from it.
        endpoint: its name, for messages.
        package: the private package that its functions are of.

    Raises:
        EndpointError: one hears a signal that blinker keeps by name; nobody knows its senders.
    """
    for signal in _FLASKS:
        for receiver, is_weak in _receivers(signal, package, ANY_ID):
            signal.disconnect(receiver)
            signal.connect(receiver, app, weak=is_weak)
    for name, signal in list(blinker.default_namespace.items()):
        for receiver, _ in _receivers(signal, package, ANY_ID):
            raise EndpointError(
                endpoint,
                f"endpoint {endpoint!r}: {_described(receiver)} hears the signal {name!r} of every "
                "app in this process; write connect(f, sender=app), or blinker.Signal() in "
                "resources.py, which each app has for itself.",
            )


def drop_receivers(package: str) -> None:
    """Disconnect all receivers of a private package; those that are held strongly keep its app."""
    for signal in (*_FLASKS, *list(blinker.default_namespace.values())):
        for receiver, _ in _receivers(signal, package):
            signal.disconnect(receiver)


def _receivers(signal: Signal, package: str, sender: Any = ANY) -> Iterator[tuple[Any, bool]]:
    """Yield who hears a sender, if it is of that package, and whether it is held weakly."""
    held = signal.receivers
    keys = list(held) if sender is ANY else list(signal._by_sender.get(sender, ()))  # noqa: SLF001
    for key in keys:
        one = held.get(key)
        is_weak = isinstance(one, weakref.ref)
        receiver = one() if isinstance(one, weakref.ref) else one
        if _module(receiver).partition(".")[0] == package:
            yield receiver, is_weak


def _module(receiver: Any) -> str:
    while isinstance(receiver, partial):
        receiver = receiver.func
    return str(getattr(receiver, "__module__", ""))


def _described(receiver: Any) -> str:
    while isinstance(receiver, partial):
        receiver = receiver.func
    code = getattr(receiver, "__code__", None)
    name = getattr(receiver, "__qualname__", type(receiver).__qualname__)
    return name if code is None else f"{name} ({Path(code.co_filename).name}:{code.co_firstlineno})"
