"""Instances on their way out: drained, closed, and seen to be freed.

A retired instance closes with its last request. One that takes longer than it may is closed all
the same, and the log says how many requests were cut. An app that is still alive some time after
it was closed leaks, most often through an extension's signal receiver: the log says what holds it.
"""

import gc
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import BuiltinFunctionType, FrameType, FunctionType, MethodType
from typing import cast
from weakref import ref

from tenantry.routing.instance import Instance

SURVIVOR_S = 10.0
"""How long an app may live after it was closed before its holders are looked for: the garbage
collector has often come by then, and looking stops all threads for some milliseconds."""

MANY_FROZEN = 20
"""So many apps that the host froze, and that serve no more, are worth a collection of all that it
froze: over 800 apps one stops all threads for 0.9 s. Fewer stay in memory."""

UNFREEZE_PAUSE_S = 300.0
"""Between two such collections."""

HOLDERS = 5
"""How many holders the log names."""

_NAMED = (FunctionType, BuiltinFunctionType, type)

_logger = logging.getLogger(__name__)


@dataclass
class _Departed:
    name: str
    app: "ref[object]"
    look_at: float


class Draining:
    """The instances of one process that serve no more. One thread uses it.

    Args:
        drain_timeout_s: how long requests in flight may take to finish.
        clock: seconds.
    """

    def __init__(self, drain_timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._drain_timeout_s = drain_timeout_s
        self._clock = clock
        self._draining: list[tuple[str, Instance, float]] = []
        self._departed: list[_Departed] = []
        self._collect_at = 0.0
        self._frozen: list[_Departed] = []  # those that the host froze
        self._unfreeze_at = -math.inf

    @property
    def draining(self) -> int:
        """Instances that still finish requests."""
        return len(self._draining)

    def add(self, name: str, instance: Instance) -> None:
        """Watch a retired instance of the tenant `name` to its end."""
        self._draining.append((name, instance, self._clock() + self._drain_timeout_s))

    def check(self) -> None:
        """Close what is overdue, and report what should be gone and is not."""
        now, left = self._clock(), []
        for name, instance, until in self._draining:
            if not instance.is_closed and until <= now:
                facts = {"tenant": name, "cut_requests": instance.close_now()}
                _logger.warning("instance.drain_timed_out", extra=facts)
            if not instance.is_closed:
                left.append((name, instance, until))
            elif instance.app is not None:
                self._departed.append(_Departed(name, instance.app, now + SURVIVOR_S))
        self._draining = left
        self._report_survivors(now)

    def close(self) -> None:
        """Close what still drains: the process ends, or who serves has waited already."""
        for _, instance, _ in self._draining:
            instance.close_now()
        self._draining = []

    def _report_survivors(self, now: float) -> None:
        self._departed = [one for one in self._departed if one.app() is not None]
        self._frozen = [one for one in self._frozen if one.app() is not None]
        if now >= self._collect_at and any(one.look_at <= now for one in self._departed):
            self._collect_at = now + SURVIVOR_S
            gc.collect()
            self._frozen += self._report(now)
        if len(self._frozen) >= MANY_FROZEN and now >= self._unfreeze_at:
            self._unfreeze_at = now + UNFREEZE_PAUSE_S
            self._departed += self._frozen
            gc.unfreeze()
            gc.collect()
            self._frozen = self._report(now)
            gc.freeze()

    def _report(self, now: float) -> list[_Departed]:
        """Report those that are due and alive; return whom the collector was not to look at."""
        due = [one for one in self._departed if one.look_at <= now and one.app() is not None]
        self._departed = [one for one in self._departed if one.look_at > now]
        seen = {id(one) for one in gc.get_objects()} if due else set()
        frozen = []
        for one in due:
            app = one.app()
            if id(app) not in seen:
                frozen.append(one)
            elif app is not None:
                facts = {"tenant": one.name, "held_by": _holders(app)}
                _logger.warning("instance.not_freed", extra=facts)
        return frozen


def _holders(app: object) -> list[str]:
    """Return what refers to `app`, by type and name; none of what is frozen."""
    holders = [one for one in gc.get_referrers(app) if type(one) is not FrameType]
    return [_describe(one) for one in holders[:HOLDERS]]


def _describe(holder: object) -> str:
    # Asks the types only: an object of a tenant's may raise, or run code, when it is looked at.
    kind = type(holder)
    if kind is dict:
        keys = [key for key in cast("dict[object, object]", holder) if type(key) is str]
        return f"dict with {', '.join(sorted(keys)[:3])}"
    if kind in _NAMED:
        return f"{kind.__qualname__} {cast('FunctionType', holder).__qualname__}"
    if kind is MethodType:
        return f"method {cast('MethodType', holder).__func__.__qualname__}"
    return f"{kind.__module__}.{kind.__qualname__}"
