"""The host's own pages under `/-/`: liveness and readiness, with reasons for operators only."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from tenantry.http.problem import ProblemResponse

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

READY_AGE_S = 1.0
"""Maximum age in seconds of the counts on the tenants' listener. Counting 2,000 tenants takes 13
ms, and every client can request the page."""

LIVENESS = "/-/livez"
"""The path of the liveness page."""

LIVE_BODY = b'{"status": "live"}\n'

NOT_FOUND = ProblemResponse(HTTPStatus.NOT_FOUND, "Nothing is served at this path.")
HOST_STARTING = ProblemResponse(
    HTTPStatus.SERVICE_UNAVAILABLE, "This host is starting.", retry_after_s=1
)
GET_ONLY = ProblemResponse(
    HTTPStatus.METHOD_NOT_ALLOWED, "This page answers only GET and HEAD.", allow="GET, HEAD"
)


class _Live(ProblemResponse):
    """The page `/-/livez`, which shows that the process is alive."""

    def render(self, environ: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        """Return the status line, the headers and the JSON document."""
        del environ
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(LIVE_BODY))),
            ("Cache-Control", "no-store"),
        ]
        return "200 OK", headers, LIVE_BODY


LIVE = _Live(HTTPStatus.OK, "live", is_refusal=False)


@dataclass(frozen=True)
class MountStatus:
    """The state of one mount, for operators."""

    name: str
    prefix: str
    state: str
    reason: str
    """Why the host does not serve the newest version of the tenant file; empty if it does."""
    since: float
    """Time at which the newest tenant file was validated, in seconds since the epoch."""
    digest: str
    """SHA-256 of the newest version of the tenant file."""
    endpoints: tuple[str, ...]
    """The endpoints that the mount serves."""
    database: str = ""
    """Problem with the tenant's database: `behind: …`, `ahead: …` or `down: …`; empty if there is
    no problem."""
    has_app_migrations: bool = False
    """Whether the tenant has `MIGRATIONS`, which only commands read."""
    stuck: int = 0
    """Number of running requests that have exceeded their deadline."""
    hosts: tuple[str, ...] = ()
    """The tenant's own host names; the first is canonical."""
    is_parked: bool = False
    """Whether the mount has failed only because the tenant's requests ended workers. The host stays
    ready despite a parked tenant, because a client of one tenant must not be able to take all
    tenants out of a load balancer."""


class HostPages:
    """A WSGI app that serves `/-/livez`, `/-/readyz` and the pages in `more`, and otherwise 404.

    Args:
        status: returns the current status of every mount.
        is_all_known: returns whether every tenant file has been validated once.
        is_for_operators: whether `/-/readyz` shows names and reasons in addition to counts.
        more: the WSGI app of each further page, by path.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        status: Callable[[], Sequence[MountStatus]],
        is_all_known: Callable[[], bool],
        *,
        is_for_operators: bool = False,
        more: "Mapping[str, WSGIApplication] | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._known: tuple[float, bool, bytes] = (-math.inf, False, b"")
        """The time of the last page, whether the host was ready at that time, and the page."""
        self._status = status
        self._is_all_known = is_all_known
        self._is_for_operators = is_for_operators
        self._pages: dict[str, WSGIApplication] = {
            LIVENESS: LIVE,
            "/-/readyz": self._ready,
            **(more or {}),
        }

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request for one of the host's pages."""
        path = environ.get("PATH_INFO", "")
        page = self._pages.get(path, NOT_FOUND)
        if page is NOT_FOUND and not path.startswith("/-/") and not self._is_all_known():
            page = HOST_STARTING  # the path may belong to a tenant whose file is not validated yet
        if path in self._pages and environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            page = GET_ONLY
        return page(environ, start_response)

    def _ready(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        made_at, is_ready, body = self._known
        if self._is_for_operators or self._clock() - made_at > READY_AGE_S:
            is_ready, body = self._make_page()
            if self._is_all_known():  # the host knows every tenant soon after the start
                self._known = self._clock(), is_ready, body
        status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        start_response(f"{status.value} {status.phrase}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _make_page(self) -> tuple[bool, bytes]:
        mounts = self._status()
        counts = Counter(mount.state for mount in mounts)
        has_failed = any(mount.state == "failed" and not mount.is_parked for mount in mounts)
        is_ready = self._is_all_known() and not has_failed
        page: dict[str, object] = {
            "status": "ready" if is_ready else "not ready",
            "tenants": dict(sorted(counts.items())),
        }
        if self._is_for_operators:
            page["mounts"] = [asdict(mount) for mount in mounts]
        return is_ready, json.dumps(page).encode() + b"\n"
