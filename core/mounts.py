"""Mounts: which instance answers under which URL prefix. Knows WSGI, not Flask.

Three things are kept apart: what the folder says (`catalogue`), the routing (`Mounts`: an
immutable map, replaced whole, read without a lock) and the live instances (`Mount`: built on the
first request, under that mount's own lock).
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import Context
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

from werkzeug.middleware.dispatcher import DispatcherMiddleware

from core.problem import ProblemAnswer
from core.tenant import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

State = Literal["idle", "serving", "failed", "maintenance"]

FIRST_BACK_OFF_S = 1.0
"""Pause after the first failed build: a database that restarts is back in about that time."""

MAX_BACK_OFF_S = 60.0
"""Pauses double up to this: a mended dependency is noticed within a minute."""

BUILD_PATIENCE_S = 0.25
"""How old a build may get before further requests stop waiting for it and get 503.

A usual build takes 10 to 125 ms. A request that waits holds a thread, so a slow build may hold
threads that other tenants need for this long and no longer.
"""

FILE_RETRY_AFTER_S = 30
"""What clients of a rejected file are told: an operator has to mend it."""

MAINTENANCE_RETRY_AFTER_S = 120
"""What clients are told during maintenance."""

PREFIX_SEGMENTS = 4
"""No prefix has more segments, so the dispatcher is asked about no more: its loop is quadratic in
their number (5.35 ms for 2,000 segments against 2.8 µs for one, Werkzeug 3.1.9)."""

_TAIL = "tenantry.path_tail"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Instance:
    """An app with what belongs to it, while it serves. Whoever built it closes it."""

    wsgi: "WSGIApplication"
    close: Callable[[], None]


def unavailable(detail: str, retry_after_s: float) -> ProblemAnswer:
    """Return a 503 that tells the client when to come again."""
    seconds = math.ceil(max(1, retry_after_s))
    return ProblemAnswer(HTTPStatus.SERVICE_UNAVAILABLE, detail, retry_after_s=seconds)


class Mount:
    """One prefix and the instance that it serves; lives as long as the tenant's file.

    `build` is called at most once at a time, on a request's thread, under this mount's lock, and
    may raise anything: the tenant is then `failed` and tried again after a pause that doubles.
    """

    def __init__(
        self,
        tenant: Tenant,
        build: Callable[[Tenant], Instance],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = tenant.name
        self.prefix = tenant.url_prefix
        self.tenant = tenant
        self.reason = ""
        self._build = build
        self._clock = clock
        self._lock = threading.Lock()  # protects building and everything below
        self._instance: Instance | None = None
        self._building_since: float | None = None
        self._failures = 0
        self._retry_at = -math.inf
        self._is_closed = False

    @property
    def state(self) -> State:
        """What it would do with a request now."""
        if self.tenant.maintenance:
            return "maintenance"
        if self._instance is not None:
            return "serving"
        return "failed" if self._failures else "idle"

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer with the instance, built now if there is none; 503 if it cannot be had."""
        environ["PATH_INFO"] += environ.pop(_TAIL, "")
        if self.tenant.maintenance:
            message = self.tenant.maintenance
            detail = message if isinstance(message, str) else "Down for maintenance."
            answer: WSGIApplication = unavailable(detail, MAINTENANCE_RETRY_AFTER_S)
        else:
            instance = self._instance
            answer = instance.wsgi if instance is not None else self._wake()
        return answer(environ, start_response)

    def instance(self) -> Instance | None:
        """Return the built instance, building it now if the back-off allows; None if it failed."""
        self._wake()
        return self._instance

    def _wake(self) -> "WSGIApplication":
        """Return the instance's app, or the 503 that says when to come again."""
        if not self._lock.acquire(timeout=self._patience_s()):
            return unavailable("This application is starting.", 1)
        try:
            if self._instance is not None:  # another request built it meanwhile
                return self._instance.wsgi
            left_s = self._retry_at - self._clock()
            if self._is_closed or left_s > 0:
                return unavailable("This application is not available.", left_s)
            return self._build_now()
        finally:
            self._lock.release()

    def _patience_s(self) -> float:
        since = self._building_since
        return BUILD_PATIENCE_S - (
            0 if since is None else min(self._clock() - since, BUILD_PATIENCE_S)
        )

    def _build_now(self) -> "WSGIApplication":
        self._building_since = self._clock()
        try:
            # In a context of its own: what an endpoint's import sets is not this thread's.
            self._instance = Context().run(self._build, self.tenant)
        except BaseException as error:  # noqa: BLE001 - SystemExit of an endpoint's import too
            self._note_failure(error)
            return unavailable("This application is not available.", self._retry_at - self._clock())
        finally:
            self._building_since = None
        self._failures, self._retry_at, self.reason = 0, -math.inf, ""
        return self._instance.wsgi

    def _note_failure(self, error: BaseException) -> None:
        pause_s = min(FIRST_BACK_OFF_S * 2**self._failures, MAX_BACK_OFF_S)
        self._failures += 1
        self._retry_at = self._clock() + pause_s
        self.reason = _text(error)
        facts = {"tenant": self.name, "retry_in_s": pause_s}
        _logger.error("tenant.build_failed", exc_info=error, extra=facts)

    def close(self) -> None:
        """Close the instance, if there is one; idempotent. Requests after it get 503."""
        with self._lock:
            self._is_closed = True
            instance, self._instance = self._instance, None
        if instance is not None:
            instance.close()


def _text(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except BaseException:  # noqa: BLE001 - whoever wrote the exception may have wronged its text too
        return type(error).__name__


class FailedMount:
    """The prefix of a tenant whose file was rejected: 503, and not a word why."""

    state: Literal["failed"] = "failed"

    def __init__(self, name: str, prefix: str | None, reason: str) -> None:
        self.name = name
        self.prefix = prefix
        self.reason = reason

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer 503."""
        answer = unavailable("This application is not available.", FILE_RETRY_AFTER_S)
        return answer(environ, start_response)

    def close(self) -> None:
        """Do nothing: there is no instance."""


AnyMount = Mount | FailedMount


class Mounts:
    """The routing snapshot: Werkzeug's dispatcher over an immutable map, replaced whole.

    A request reads the reference once, so it sees one snapshot however the map changes meanwhile.
    """

    def __init__(self, fallback: "WSGIApplication") -> None:
        self._fallback = fallback
        self._all: tuple[AnyMount, ...] = ()
        self._dispatch = DispatcherMiddleware(self._whole_path, {})

    @property
    def all(self) -> tuple[AnyMount, ...]:
        """Every mount, in the order of names."""
        return self._all

    def replace(self, mounts: Iterable[AnyMount]) -> None:
        """Route to `mounts` from the next request on; closes nothing."""
        self._all = tuple(sorted(mounts, key=lambda mount: mount.name))
        routes: dict[str, WSGIApplication] = {
            mount.prefix: mount for mount in self._all if mount.prefix is not None
        }
        self._dispatch = DispatcherMiddleware(self._whole_path, routes)

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer with the mount whose prefix is a whole-segment prefix of the path, or the host."""
        parts = environ.get("PATH_INFO", "").split("/", PREFIX_SEGMENTS + 1)
        if parts[0]:  # `OPTIONS *`, an authority: no path
            return self._fallback(environ, start_response)
        if len(parts) > PREFIX_SEGMENTS + 1:
            environ[_TAIL] = "/" + parts.pop()
            environ["PATH_INFO"] = "/".join(parts)
        return self._dispatch(environ, start_response)

    def _whole_path(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        environ["PATH_INFO"] += environ.pop(_TAIL, "")
        return self._fallback(environ, start_response)
