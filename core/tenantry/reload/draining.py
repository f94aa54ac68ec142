"""Draining: retired instances finish their requests and close, and leaks are reported.

A retired instance closes when its last request ends. After the drain timeout, `Draining` closes the
instance anyway, and logs how many requests were cut off. A closed app that stays in memory is a
leak, usually because of an extension's signal receiver. The log names the objects that refer to a
leaked app.
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

LEAK_CHECK_AFTER_S = 10.0
"""Seconds after the close of an app at which the host searches for objects that refer to the app.
The garbage collector often frees the app before the search, which stops all threads for some
milliseconds."""

MAX_FROZEN = 20
"""Number of closed but frozen apps at which the host unfreezes and collects all objects.
`gc.freeze` excludes frozen objects from garbage collection. With 800 apps, collecting all objects
stops all threads for 0.9 s."""

UNFREEZE_INTERVAL_S = 300.0
"""Minimum seconds between two garbage collections that include all frozen objects."""

MAX_REFERRERS = 5
"""Maximum number of objects that the log names for one leaked app."""

_NAMED_TYPES = (FunctionType, BuiltinFunctionType, type)

_logger = logging.getLogger(__name__)


@dataclass
class _ClosedApp:
    name: str
    app: "ref[object]"
    check_at: float

    @property
    def is_alive(self) -> bool:
        return self.app() is not None


class Draining:
    """The retired instances of one process, until `close` closes them. Not thread-safe.

    Args:
        drain_timeout_s: seconds that a retired instance has to finish its requests.
        clock: returns monotonic seconds.
    """

    def __init__(self, drain_timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._drain_timeout_s = drain_timeout_s
        self._clock = clock
        # Each item consists of a tenant's name, a retired instance, and its deadline.
        self._draining: list[tuple[str, Instance, float]] = []
        self._closed_apps: list[_ClosedApp] = []
        self._frozen_apps: list[_ClosedApp] = []  # closed apps that the garbage collector skips
        self._collect_at = 0.0
        self._unfreeze_at = -math.inf

    def add(self, name: str, instance: Instance) -> None:
        """Add a retired instance of the tenant `name`."""
        self._draining.append((name, instance, self._clock() + self._drain_timeout_s))

    def check(self) -> None:
        """Close the instances whose deadline has passed, and report leaked apps."""
        now, draining = self._clock(), []
        for name, instance, deadline in self._draining:
            if not instance.is_closed and deadline <= now:
                facts = {"tenant": name, "cut_requests": instance.close_now()}
                _logger.warning("instance.drain_timed_out", extra=facts)
            if not instance.is_closed:
                draining.append((name, instance, deadline))
            elif instance.app is not None:
                app = _ClosedApp(name, instance.app, now + LEAK_CHECK_AFTER_S)
                self._closed_apps.append(app)
        self._draining = draining
        self._check_for_leaks(now)

    def close(self) -> None:
        """Close all retired instances, even those with requests in flight."""
        for _, instance, _ in self._draining:
            instance.close_now()
        self._draining = []

    def _check_for_leaks(self, now: float) -> None:
        self._closed_apps = [app for app in self._closed_apps if app.is_alive]
        self._frozen_apps = [app for app in self._frozen_apps if app.is_alive]
        is_due = any(app.check_at <= now for app in self._closed_apps)
        if is_due and now >= self._collect_at:
            self._collect_at = now + LEAK_CHECK_AFTER_S
            gc.collect()
            self._frozen_apps += self._report_leaks(now)
        if len(self._frozen_apps) >= MAX_FROZEN and now >= self._unfreeze_at:
            self._unfreeze_at = now + UNFREEZE_INTERVAL_S
            self._closed_apps += self._frozen_apps
            gc.unfreeze()
            gc.collect()
            self._frozen_apps = self._report_leaks(now)
            gc.freeze()

    def _report_leaks(self, now: float) -> list[_ClosedApp]:
        """Log the leaked apps, and return the frozen apps, which may be garbage."""
        due = [app for app in self._closed_apps if app.check_at <= now and app.is_alive]
        self._closed_apps = [app for app in self._closed_apps if app.check_at > now]
        tracked = {id(each) for each in gc.get_objects()} if due else set()
        frozen = []
        for closed in due:
            app = closed.app()
            if id(app) not in tracked:
                frozen.append(closed)
            elif app is not None:
                facts = {"tenant": closed.name, "held_by": _referrers(app)}
                _logger.warning("instance.not_freed", extra=facts)
        return frozen


def _referrers(app: object) -> list[str]:
    """Return the types and names of objects that refer to `app`, except frozen objects."""
    found = [each for each in gc.get_referrers(app) if type(each) is not FrameType]
    return [_describe(each) for each in found[:MAX_REFERRERS]]


def _describe(referrer: object) -> str:
    # Reading an attribute of a tenant's object can raise an exception or run code, so the
    # description depends on the type of the object.
    kind = type(referrer)
    if kind is dict:
        keys = [key for key in cast("dict[object, object]", referrer) if type(key) is str]
        return f"dict with {', '.join(sorted(keys)[:3])}"
    if kind in _NAMED_TYPES:
        return f"{kind.__qualname__} {cast('FunctionType', referrer).__qualname__}"
    if kind is MethodType:
        return f"method {cast('MethodType', referrer).__func__.__qualname__}"
    return f"{kind.__module__}.{kind.__qualname__}"
