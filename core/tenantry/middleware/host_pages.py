"""The host's own pages under `/-/`: alive, ready; on the admin listener also why not."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from tenantry.http.problem import ProblemResponse
from tenantry.http.raw_head import LIVENESS

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

NOT_FOUND = ProblemResponse(HTTPStatus.NOT_FOUND, "Nothing is served at this path.")
STARTING = ProblemResponse(
    HTTPStatus.SERVICE_UNAVAILABLE, "This host is starting.", retry_after_s=1
)
GET_ONLY = ProblemResponse(
    HTTPStatus.METHOD_NOT_ALLOWED, "This page can only be read.", allow="GET, HEAD"
)


class _Live(ProblemResponse):
    """The page that says that this process has not hung; no problem, but answered like one."""

    def head(self, size_bytes: int) -> tuple[str, list[tuple[str, str]]]:
        """Return the status line and the headers of the answer."""
        status, headers = super().head(size_bytes)
        return status, [("Content-Type", "application/json"), *headers[1:]]

    def body(self, environ: object) -> bytes:
        """Return the JSON document."""
        del environ
        return b'{"status": "live"}\n'


LIVE = _Live(HTTPStatus.OK, "live", is_refusal=False)


@dataclass(frozen=True)
class MountStatus:
    """What operators may know of one mount."""

    name: str
    prefix: str
    state: str
    reason: str
    """Why the newest content of its file is not served; empty otherwise."""
    since: float
    """When that was judged (seconds since the epoch)."""
    digest: str
    """SHA-256 of that content."""
    endpoints: tuple[str, ...]
    """What it enables, as it is served."""
    database: str = ""
    """`behind: …`, `ahead: …` or `down: …`, as its requests found it; empty if good."""
    stuck: int = 0
    """Requests over their deadline that have not ended."""
    is_parked: bool = False
    """Whether it is failed for that only: it ended workers. Its requests did, which a client sends,
    so it must not take the other tenants out of a load balancer: the host is ready all the same."""


class HostPages:
    """`/-/livez`, `/-/readyz` and what it is given; anything else is 404.

    Args:
        status: tells every mount's status, now.
        is_all_known: whether every tenant file has been judged once.
        is_for_operators: names and reasons too, not only counts.
        more: path → further page.
    """

    def __init__(
        self,
        status: Callable[[], Sequence[MountStatus]],
        is_all_known: Callable[[], bool],
        *,
        is_for_operators: bool = False,
        more: "Mapping[str, WSGIApplication] | None" = None,
    ) -> None:
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
        """Answer one page."""
        path = environ.get("PATH_INFO", "")
        page = self._pages.get(path, NOT_FOUND)
        if page is NOT_FOUND and not path.startswith("/-/") and not self._is_all_known():
            page = STARTING  # it may be a tenant's, whose file has not been judged yet
        if path in self._pages and environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            page = GET_ONLY
        return page(environ, start_response)

    def _ready(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
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
        status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        body = json.dumps(page).encode() + b"\n"
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        start_response(f"{status.value} {status.phrase}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
