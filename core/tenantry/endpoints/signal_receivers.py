"""Limits the signal receivers of an endpoint to the signals of one app.

Without a limit, `request_started.connect(f)` would make Flask call `f` for the requests of every
app in the process.
"""

import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import blinker
import flask.signals
from blinker import Signal
from flask import Flask

from tenantry.errors import EndpointError
from tenantry.library_locks import SIGNALS_LOCK
from tenantry.private_code.modules import PrivateModules

_FLASK_SIGNALS: tuple[Signal, ...] = tuple(
    value for value in vars(flask.signals).values() if isinstance(value, Signal)
)


def confine_receivers(app: Flask, endpoint: str, modules: PrivateModules) -> None:
    """Connect the receivers of an endpoint again, so that they receive only signals of its app.

    Args:
        app: the app of the endpoint, which is the sender of Flask's signals.
        endpoint: the name of the endpoint, for messages.
        modules: the private modules of the app's build, which define the receivers.

    Raises:
        EndpointError: a receiver is connected to a named signal that does not belong to Flask.
    """
    with SIGNALS_LOCK:
        for signal in _FLASK_SIGNALS:
            for receiver in _receivers_of_any_sender(signal, modules):
                is_weak = _is_weakly_connected(signal, receiver)
                signal.disconnect(receiver)
                signal.connect(receiver, app, weak=is_weak)
    for name, signal in blinker.default_namespace.copy().items():
        for receiver in _receivers_of_any_sender(signal, modules):
            raise EndpointError(
                endpoint,
                f"endpoint {endpoint!r}: {_description(receiver)} receives the signal {name!r} of "
                "every app in this process; write connect(f, sender=app), or define a "
                "blinker.Signal() in resources.py, which exists once for each app.",
            )


def disconnect_receivers(modules: PrivateModules) -> None:
    """Disconnect all receivers of a build, because receivers could keep the app in memory."""
    for signal in (*_FLASK_SIGNALS, *blinker.default_namespace.copy().values()):
        for connected in signal.receivers.copy().values():
            receiver = connected() if isinstance(connected, weakref.ref) else connected
            if receiver is not None and _is_of(modules, receiver):
                signal.disconnect(receiver)


def _receivers_of_any_sender(signal: Signal, modules: PrivateModules) -> Iterator[Any]:
    """Yield the receivers of a build that are connected without a sender."""
    unknown_sender = object()
    with SIGNALS_LOCK:
        receivers = list(signal.receivers_for(unknown_sender))
    return (receiver for receiver in receivers if _is_of(modules, receiver))


def _is_weakly_connected(signal: Signal, receiver: Any) -> bool:
    """Whether a signal holds only a weak reference to a receiver."""
    return not any(connected is receiver for connected in signal.receivers.copy().values())


def _is_of(modules: PrivateModules, receiver: Any) -> bool:
    function = _unwrapped(receiver)
    function = getattr(function, "__func__", function)
    if not hasattr(function, "__globals__"):  # the receiver is an object with the method `__call__`
        function = vars(type(function)).get("__call__")
    return modules.defines(function)


def _unwrapped(receiver: Any) -> Any:
    while isinstance(receiver, partial):
        receiver = receiver.func
    return receiver


def _description(receiver: Any) -> str:
    function = _unwrapped(receiver)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    code = getattr(function, "__code__", None)
    return name if code is None else f"{name} ({Path(code.co_filename).name}:{code.co_firstlineno})"
