"""One line in the log for each request that has ended. Knows WSGI only, and nothing of logging.

It is made by hand: through `logging` and structlog a line costs eight times as much. What it says:

- the path without its query, and no header: queries hold tokens, search words and addresses;
- `client` is the name that stands in `CLIENTS`, or `oidc:SUB`, never a key;
- everything is ASCII, with what is not, and control characters, escaped as JSON does;
- a path, or a client's name, that is longer than 1 KiB is cut.

The host's own pages, which probes ask for all day, have a line only where they fail.
"""

import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote_to_bytes

from tenantry.http.environ import CLIENT, ENDPOINT, REQUEST_ID, TENANT
from tenantry.http.request_context import RequestContext

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

EVENT = "request.ended"
LOGGER = "tenantry.request"

_OWN_PAGES = "/-/"
_FAILED = "4"  # "4xx", or later in the alphabet
_STDERR = 2
_PLAIN = re.compile(r"[!#-<>-~]*")  # printable ASCII without blank, quote and equals sign

_MAX_CHARS = 1024
"""Of a path and of a client's name, as they stand in a line: a longer line than `PIPE_BUF`, 4 KiB,
would be mixed with those of other processes in a pipe."""

_PLAIN_CHARS = 80
"""That many need no look: each is 12 characters at most when it is escaped."""

_HEAD_END = b"\r\n\r\n"
_REQUEST_ID_LINE = b"\r\nX-Request-ID: "
_NO_VISIT = RequestContext()
_NO_TIME = "0.000"

Write = Callable[[str], object]


def to_stderr(line: str) -> None:
    """Write a line where all others go, in one piece."""
    try:  # noqa: SIM105 - it costs as much as the rest of this
        os.write(_STDERR, line.encode("ascii"))
    except OSError:
        pass  # nobody reads it, or the disk is full: no fault of the request


class AccessLog:
    """Writes the lines. Safe in any thread.

    Args:
        form: as people or as machines read them; like all other lines of the log.
        write: takes one line, with its end.
    """

    def __init__(self, form: Literal["console", "json"], write: Write = to_stderr) -> None:
        self._render = _as_json if form == "json" else _for_people
        self._write = write
        self._second = 0, ""  # the last second's text: one tuple, replaced whole

    def __call__(  # noqa: PLR0917 - by place: it is called for each request
        self,
        environ: "WSGIEnvironment",
        visit: RequestContext,
        path: str,
        status: str,
        bytes_in: int,
        bytes_out: int,
        wall_ns: int,
        processor_ns: int,
    ) -> None:
        """Write the line of a request that has ended."""
        tenant = environ.get(TENANT)
        if tenant is None and path.startswith(_OWN_PAGES) and status < _FAILED:
            return
        if not path.isascii():  # PEP 3333: bytes as latin-1
            path = path.encode("latin-1", "replace").decode("utf-8", "replace")
        client = environ.get(CLIENT) or ""
        if len(path) + len(client) > _PLAIN_CHARS:
            path, client = _cut(path), _cut(client)
        self._write(
            self._render(
                self._now(),
                tenant or "",
                environ.get(REQUEST_ID) or "",
                visit,
                environ.get(ENDPOINT) or "",
                environ["REQUEST_METHOD"],
                path,
                status[:3] or "0",
                bytes_in,
                bytes_out,
                f"{wall_ns / 1e6:.3f}",
                f"{processor_ns / 1e6:.3f}",
                client,
            )
        )

    def turned_away(self, tenant: str, head: bytes, answer: bytes) -> None:
        """Write the line of a request that was refused before it was parsed; it took no time.

        Args:
            tenant: whose it was.
            head: its head, which begins with a method and a path.
            answer: all that it got, request id included.
        """
        method, target, _ = head.split(b" ", 2)
        path = target.partition(b"?")[0]
        if b"%" in path:
            path = unquote_to_bytes(path)
        shown = path.decode("utf-8", "replace")
        if len(shown) > _PLAIN_CHARS:
            shown = _cut(shown)
        end = answer.find(_HEAD_END)
        start = answer.find(_REQUEST_ID_LINE) + len(_REQUEST_ID_LINE)
        self._write(
            self._render(
                self._now(),
                tenant,
                answer[start : answer.find(b"\r", start)].decode("latin-1"),
                _NO_VISIT,
                "",
                method.decode("latin-1"),
                shown,
                answer[9:12].decode("latin-1"),
                0,
                len(answer) - end - len(_HEAD_END),
                _NO_TIME,
                _NO_TIME,
                "",
            )
        )

    def _now(self) -> str:
        now_ns = time.time_ns()
        second, rest = divmod(now_ns, 1_000_000_000)
        known, text = self._second
        if second != known:
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second, text
        return f"{text}.{rest // 1000:06d}Z"


def _as_json(  # noqa: PLR0917 - as above
    now: str,
    tenant: str,
    request_id: str,
    visit: RequestContext,
    endpoint: str,
    method: str,
    path: str,
    status: str,
    bytes_in: int,
    bytes_out: int,
    wall_ms: str,
    processor_ms: str,
    client: str,
) -> str:
    database_ms = f"{visit.database_ns / 1e6:.3f}" if visit.queries else _NO_TIME
    trace = f', "trace_id": "{visit.trace_id}"' if visit.trace_id else ""
    caller = f', "client": {quoted(client)}' if client else ""
    return (
        f'{{"tenant": "{tenant}", "request_id": "{request_id}", '
        f'"endpoint": {quoted(endpoint)}, "method": {quoted(method)}, "path": {quoted(path)}, '
        f'"status": {status}, "bytes_in": {bytes_in}, "bytes_out": {bytes_out}, '
        f'"wall_ms": {wall_ms}, "processor_ms": {processor_ms}, '
        f'"database_ms": {database_ms}, "queries": {visit.queries}{caller}{trace}, '
        f'"event": "{EVENT}", "level": "info", "logger": "{LOGGER}", "timestamp": "{now}"}}\n'
    )


def _for_people(  # noqa: PLR0917 - as above
    now: str,
    tenant: str,
    request_id: str,
    visit: RequestContext,
    endpoint: str,
    method: str,
    path: str,
    status: str,
    bytes_in: int,
    bytes_out: int,
    wall_ms: str,
    processor_ms: str,
    client: str,
) -> str:
    database_ms = f"{visit.database_ns / 1e6:.3f}" if visit.queries else _NO_TIME
    trace = f" trace_id={visit.trace_id}" if visit.trace_id else ""
    caller = f" client={_plain(client)}" if client else ""
    return (
        f"{now} [info     ] {EVENT:<30} [{LOGGER}] method={_plain(method)} path={_plain(path)} "
        f"status={status} tenant={tenant} endpoint={_plain(endpoint)} request_id={request_id} "
        f"bytes_in={bytes_in} bytes_out={bytes_out} wall_ms={wall_ms} "
        f"processor_ms={processor_ms} database_ms={database_ms} "
        f"queries={visit.queries}{caller}{trace}\n"
    )


def _cut(text: str) -> str:
    """Return the beginning of a text that is too long once it is escaped."""
    shown = text
    while (size := len(quoted(shown))) > _MAX_CHARS:
        shown = shown[: len(shown) * _MAX_CHARS // size]
    return shown if shown is text else f"{shown}…"


def _plain(text: str) -> str:
    """Return a text as it is, or quoted where that could be taken for something else."""
    return text if _PLAIN.fullmatch(text) else quoted(text)
