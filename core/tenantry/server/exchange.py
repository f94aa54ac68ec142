"""One request and its response, from the complete request to the last byte of the response.

`Exchange` calls the WSGI app and writes the response (PEP 3333), in the thread that runs the
request. That thread waits for the client only if the spool has no room for the response, such as
for a response over `connection.SPOOLED_BYTES`.
"""

import re
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from tenantry.http.environ import REQUEST_ID
from tenantry.http.problem import ProblemResponse
from tenantry.http.request_head import Framing
from tenantry.http.response_close import ResponseCutError
from tenantry.server.connection import Connection
from tenantry.server.serving import Serving
from tenantry.server.spool import Spool
from tenantry.server.steps.request_body import ChunkedBody, LengthBody

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

FAILED = ProblemResponse(HTTPStatus.INTERNAL_SERVER_ERROR, "The request could not be answered.")

_PLAIN_FIELDS = frozenset({
    "Allow", "Cache-Control", "Content-Disposition", "Content-Type", "ETag", "Expires",
    "Last-Modified", "Link", "Location", "Retry-After", "Set-Cookie", "Vary", "X-Request-ID",
})  # fmt: skip
"""Common field names that say nothing about framing or the connection."""

_HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
    "trailers", "transfer-encoding", "upgrade",
})  # fmt: skip
"""Fields that belong to the server (PEP 3333, RFC 9110 §7.6.1)."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BODILESS = ("204", "304")


def _never(_: "Exchange") -> None:
    raise AssertionError("the request has no turn yet")


class Exchange:
    """One request and its response. One thread at a time uses it: the one that handles the request.

    Args:
        connection: the client's connection.
        environ: the WSGI environ.
        framing: the framing of the request.
        serving: what all exchanges of the worker share.
    """

    __slots__ = (
        "_headers", "_is_bodiless", "_is_chunked", "_left_bytes", "_send", "_serving", "_status",
        "body", "connection", "environ", "framing", "has_failed", "is_head_sent",
        "is_kept_alive", "is_over", "may_wait", "on_turn", "receiving", "record", "sent_bytes",
        "tenant", "waits_for_room_since",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        environ: "WSGIEnvironment",
        framing: Framing,
        serving: Serving,
    ) -> None:
        self.connection = connection
        self.environ = environ
        self.framing = framing
        self._serving = serving
        self._send = connection.send
        self.is_kept_alive = framing.is_kept_alive
        self.tenant: str | None = ""
        self.record: Any = None
        self.on_turn: Callable[[Exchange], object] = _never
        """The function to call when the request may run."""
        self.body: Spool | None = None
        self.receiving: LengthBody | ChunkedBody | None = None
        self.waits_for_room_since = 0.0
        """The time at which the body began to wait for budget; 0 if the body does not wait."""
        self._status = ""
        self._headers: list[tuple[str, str]] = []
        self.is_head_sent = False
        self.is_over = False
        """Whether the request has ended. The connection may then serve another request."""
        self.may_wait = True
        """Whether the thread of the request may wait for the client."""
        self.has_failed = False
        self._is_chunked = self._is_bodiless = False
        self._left_bytes: int | None = None
        self.sent_bytes = 0

    @property
    def status(self) -> str:
        """The status line, for gunicorn's access log."""
        return self._status

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The response headers, for gunicorn's access log."""
        return self._headers

    @property
    def sent(self) -> int:
        """The bytes of the response body, for gunicorn's access log."""
        return self.sent_bytes

    def on_backlog(self, connection: Connection) -> None:
        """Let the leader send what the client does not accept yet, while the request runs."""
        self._serving.on_backlog(connection)

    def new_spool(self) -> Spool:
        """Return an empty spool for the request's tenant."""
        return Spool(self._serving.budget, self.tenant or "")

    # -- the app --------------------------------------------------------------------------------

    def respond(self, app: "WSGIApplication", log: Any) -> None:
        """Call the app and send its response. Raises nothing."""
        try:
            body = app(self.environ, self.start_response)
            try:
                for chunk in body:
                    self.write(chunk)
                if self._is_chunked or self._left_bytes or not self.is_head_sent:
                    self._end()
            finally:
                close = getattr(body, "close", None)
                if close is not None:
                    close()
        except ResponseCutError:  # the client has disconnected, or the app's layers cut it
            self.cut()
        except BaseException:  # noqa: BLE001 - logged in `_fail`
            self._fail(log)
        if self.body is not None:
            self.body.close()

    def _fail(self, log: Any) -> None:
        if self.connection.is_hijacked:
            self.cut()
            return
        log.error("Error handling request %s", self.environ.get("RAW_URI"), exc_info=sys.exc_info())
        if self.is_head_sent:
            self.cut()
            return
        self._status = ""
        try:
            self.refuse(FAILED)
        except ResponseCutError:
            self.cut()

    def cut(self) -> None:
        """Cut the response, and close the connection, so that the client sees the cut."""
        self.has_failed, self.is_kept_alive = True, False

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: "OptExcInfo | None" = None,
        /,
    ) -> Callable[[bytes], object]:
        """Accept the head of the response (PEP 3333)."""
        if exc_info is not None:
            if self.is_head_sent and exc_info[1] is not None:
                raise exc_info[1].with_traceback(exc_info[2])
        elif self._status:
            raise RuntimeError("start_response was called twice")
        self._status, self._headers = status, headers
        return self.write

    def write(self, data: bytes) -> None:
        """Send bytes of the body, and the head before the first bytes.

        Raises:
            ResponseCutError: the client has disconnected, or reads too slowly.
        """
        if not data:
            return
        if self.connection.is_hijacked:
            raise ResponseCutError("the app has taken over the connection")
        head = b""
        if not self.is_head_sent:
            head = self._head()
            self.is_head_sent = True
        if self._is_bodiless:
            data = b""
        elif self._is_chunked:
            self.sent_bytes += len(data)
            data = b"%x\r\n%b\r\n" % (len(data), data)
        else:
            if self._left_bytes is not None:
                data = data[: self._left_bytes]
                self._left_bytes -= len(data)
            self.sent_bytes += len(data)
        if head or data:
            self._send(head + data, self)

    def _end(self) -> None:
        """Send the end of a response that has not ended with its last bytes."""
        if self.connection.is_hijacked:
            self.cut()
            return
        if not self.is_head_sent:
            head = self._head()
            self.is_head_sent = True
            self._send(head + b"0\r\n\r\n" if self._is_chunked else head, self)
        elif self._is_chunked:
            self._send(b"0\r\n\r\n", self)
        if self._left_bytes and not self._is_bodiless:
            self.cut()

    # -- the head of the response ---------------------------------------------------------------

    def _head(self) -> bytes:
        """Return the response head.

        Raises:
            RuntimeError: the app did not call `start_response`.
            ValueError: the app's status or headers are not valid HTTP.
        """
        status = self._status
        if not status:
            raise RuntimeError("start_response was not called")
        lines: list[str] = []
        length: int | None = None
        for name, value in self._headers:
            if name not in _PLAIN_FIELDS:
                lowered = name.lower()
                if lowered == "content-length":
                    if status[:3] == "204" or status[0] == "1":  # RFC 9110 §8.6
                        continue
                    length = int(value)
                elif lowered in _HOP_BY_HOP or lowered == "date":
                    continue
            lines.append(f"{name}: {value}\r\n")
        self._is_bodiless = (
            self.environ["REQUEST_METHOD"] == "HEAD" or status[:3] in _BODILESS or status[0] == "1"
        )
        self._is_chunked = False  # an earlier, invalid head may have set it to True
        if length is None and not self._is_bodiless:
            if self.framing.is_http_1_0:
                self.is_kept_alive = False
            else:
                self._is_chunked = True
                lines.append("Transfer-Encoding: chunked\r\n")
        self._left_bytes = length
        self.is_kept_alive = self.is_kept_alive and self._serving.keeps_alive
        connection = "keep-alive" if self.is_kept_alive else "close"
        text = (
            f"HTTP/1.1 {status}\r\nDate: {self._serving.date}\r\n{''.join(lines)}"
            f"Connection: {connection}\r\n\r\n"
        )
        # A line break in a status or a field would begin another field, or another response.
        count = len(lines) + 4
        if text.count("\n") != count or text.count("\r") != count or _CONTROL.search(text):
            raise ValueError("the response head has characters that HTTP forbids")
        return text.encode("latin-1")

    # -- responses of the server ------------------------------------------------------------------

    def refuse(self, problem: ProblemResponse, headers: "Any" = ()) -> int:
        """Send a problem response; return the number of its bytes.

        Raises:
            ResponseCutError: the client has disconnected.
        """
        self.may_wait = False  # the leader sends the response, and must not wait
        self._status, own_headers, body = problem.render(self.environ)
        self._headers = [*own_headers, *headers]
        request_id = self.environ.get(REQUEST_ID)
        if request_id:
            self._headers.append(("X-Request-ID", request_id))
        self.write(body)
        return self.sent_bytes
