"""Limits the signal receivers of a tenant's code to the signals of one app.

Without a limit, `user_logged_in.connect(f)` would make Flask-Login call `f` for the logins at every
tenant of the process. The limit holds for every blinker signal, and whenever the code connects a
receiver. Receivers that libraries and shared modules define receive the signals of all apps.
"""

import weakref
from collections.abc import Iterator
from functools import cache, partial, wraps
from typing import Any

from blinker import ANY, Signal
from flask import Flask

from tenantry.endpoints.plain_names import current_modules, modules_of
from tenantry.private_code.modules import PrivateModules, build_defining


@cache
def confine_receivers() -> None:
    """Let blinker call a tenant's receivers only for its own app, once in each process."""
    connect, receivers_for = Signal.connect, Signal.receivers_for

    @wraps(connect)
    def connect_of_tenant(self: Signal, receiver: Any, sender: Any = ANY, weak: bool = True) -> Any:
        modules = _build_of(receiver)
        if modules is not None:
            modules.signals.add(self)
        return connect(self, receiver, sender, weak)

    @wraps(receivers_for)
    def receivers_of_tenant(self: Signal, sender: Any) -> Iterator[Any]:
        if not self.receivers:  # most signals have no receivers
            return iter(())
        return (one for one in receivers_for(self, sender) if _hears(one, sender))

    Signal.connect = connect_of_tenant  # type: ignore[method-assign]
    Signal.receivers_for = receivers_of_tenant  # type: ignore[method-assign, assignment]


def disconnect_receivers(modules: PrivateModules) -> None:
    """Disconnect all receivers of a build, because receivers could keep the app in memory."""
    while modules.signals:
        signal = modules.signals.pop()
        for connected in signal.receivers.copy().values():
            receiver = connected() if isinstance(connected, weakref.ref) else connected
            if receiver is not None and _build_of(receiver) is modules:
                signal.disconnect(receiver)


def _hears(receiver: Any, sender: Any) -> bool:
    """Whether a receiver gets a signal: one of its own app, or any if no tenant defines it."""
    modules = _build_of(receiver)
    if modules is None:
        return True
    sending = modules_of(sender) if isinstance(sender, Flask) else None
    return modules is (sending or current_modules())


def _build_of(receiver: Any) -> PrivateModules | None:
    """Return the build whose code defines a receiver, or None for any other receiver."""
    while isinstance(receiver, partial):
        receiver = receiver.func
    function = getattr(receiver, "__func__", receiver)
    if not hasattr(function, "__globals__"):  # a class, or an object with the method `__call__`
        name = "__init__" if isinstance(function, type) else "__call__"
        function = getattr(function if name == "__init__" else type(function), name, None)
    while True:
        modules = build_defining(function)
        if modules is not None:
            return None if modules.is_shared else modules
        if not hasattr(function, "__wrapped__"):
            return None
        function = function.__wrapped__  # the decorator of a library returned another function
