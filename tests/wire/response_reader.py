"""A strict reader of HTTP/1.1 responses: whatever is not well-formed raises an error."""

import re
import socket
from dataclasses import dataclass

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9]) [\t -~\x80-\xff]*")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
_LIMIT_BYTES = 1 << 22


class MalformedResponseError(Exception):
    """The bytes of a server are not a response as RFC 9112 describes it."""


class CutResponseError(Exception):
    """The server closed the connection in the middle of a response."""


@dataclass(frozen=True)
class Response:
    """A whole response."""

    status: int
    minor_version: int
    headers: dict[str, str]
    """Header values by name in lower case. Repeated fields are joined with a comma."""
    body: bytes

    @property
    def is_interim(self) -> bool:
        """Whether a final response follows."""
        return self.status < 200

    @property
    def announces_close(self) -> bool:
        """Whether the server closes the connection after this response."""
        options = [one.strip().lower() for one in self.headers.get("connection", "").split(",")]
        if self.minor_version == 0:
            return "keep-alive" not in options
        return "close" in options


class ResponseReader:
    """Reads the responses of one connection, one after another.

    Each method raises `TimeoutError` and `ConnectionResetError` like the socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self._is_at_end = False

    def next(self, *, is_head: bool = False) -> Response | None:
        """Return the next response, or None at the end of the connection.

        Args:
            is_head: whether the request may have been a HEAD request.

        Raises:
            MalformedResponseError: the bytes are not a response.
            CutResponseError: the connection ends in the middle of a response.
        """
        if not self._buffer and not self._receive():
            return None
        head = self._until(b"\r\n\r\n")
        status, minor_version, headers = _parse_head(head)
        body = b""
        if not _is_bodiless(status, headers):
            body = self._body(status, headers, is_head=is_head)
        return Response(status, minor_version, headers, body)

    def _body(self, status: int, headers: dict[str, str], *, is_head: bool) -> bytes:
        if is_head and status >= 400 and not self._buffer and not self._receive():
            return b""
        if "transfer-encoding" in headers:
            if headers["transfer-encoding"].lower() != "chunked" or "content-length" in headers:
                raise MalformedResponseError(f"framing: {headers}")
            return self._chunks()
        if "content-length" in headers:
            if not re.fullmatch("[0-9]{1,9}", headers["content-length"]):
                raise MalformedResponseError(f"Content-Length: {headers['content-length']}")
            return self._exactly(int(headers["content-length"]))
        while self._receive():
            pass
        body, self._buffer = self._buffer, b""
        return body

    def _chunks(self) -> bytes:
        body = b""
        while True:
            size = self._until(b"\r\n")
            if not _CHUNK_SIZE.fullmatch(size):
                raise MalformedResponseError(f"chunk size {size[:40]!r}")
            body += self._exactly(int(size, 16))
            if self._exactly(2) != b"\r\n":
                raise MalformedResponseError("a chunk does not end with CRLF")
            if int(size, 16) == 0:
                return body

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            if not self._receive():
                raise CutResponseError(repr(self._buffer[:80]))
        found, _, self._buffer = self._buffer.partition(end)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not self._receive():
                raise CutResponseError(f"{len(self._buffer)} of {size} bytes")
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _receive(self) -> bool:
        """Receive bytes; return False at the end of the connection."""
        if self._is_at_end:
            return False
        data = self._connection.recv(1 << 18)
        self._is_at_end = not data
        self._buffer += data
        if len(self._buffer) > _LIMIT_BYTES:
            raise MalformedResponseError("endless")
        return bool(data)


def _parse_head(head: bytes) -> tuple[int, int, dict[str, str]]:
    status_line, *fields = head.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(status_line)
    if match is None:
        raise MalformedResponseError(f"status line {status_line[:80]!r}")
    headers: dict[str, str] = {}
    for line in fields:
        parts = _FIELD.fullmatch(line)
        if parts is None:
            raise MalformedResponseError(f"header field {line[:80]!r}")
        name, value = parts[1].decode().lower(), parts[2].decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    status = int(match[2])
    if (status < 200 or status == 204) and headers.keys() & {"content-length", "transfer-encoding"}:
        raise MalformedResponseError(f"a {status} response with the framing of a body")
    return status, int(match[1]), headers


def _is_bodiless(status: int, headers: dict[str, str]) -> bool:
    """Whether a response has no body (RFC 9112 §6.3): the echo app says that it saw a HEAD."""
    return status < 200 or status in (204, 304) or headers.get("x-seen-method") == "HEAD"
