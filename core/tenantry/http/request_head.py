"""Reads the head of an HTTP/1.1 request, and writes the request into a WSGI environ.

The reader accepts only what RFC 9110 and RFC 9112 allow: a lenient reader and a strict proxy can
disagree about where a request ends, and then one client gets another client's response.

The reader consists of a few regular expressions, because they are faster than a parser in C that
calls Python for each field: 1.1 µs for a head with one field, and 5.4 µs for a browser's head.
httptools 0.9 takes 1.7 µs and 7.4 µs, and gunicorn's own parser 21 µs and 53 µs (2026-12, one
processor).
"""

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import unquote_to_bytes

from tenantry.grammar import is_host_header

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

HEAD_END = b"\r\n\r\n"
"""The end of a request head (RFC 9112 §2.1)."""

CHUNKED = -1
"""The `body_bytes` of a chunked body, whose size the head does not state."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]"  # noqa: S105 - the `token` of RFC 9110 §5.6.2
_METHOD = r"[!$%&'*+.^_|~0-9A-Z-]"  # no lower-case letters, as in every registered method
_REQUEST_LINE = re.compile(rf"({_METHOD}++) ([\x21-\x7e]++) HTTP/(1\.[01])\r\n")
_FIELD = re.compile(rf"^({_TOKEN}++):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)\r\n", re.MULTILINE)
_BARE_LF = re.compile(rb"(?<!\r)\n")
_LENGTH = re.compile(r"[0-9]{1,18}")
_ABSOLUTE = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
_SINGLE = frozenset({"HTTP_HOST", "CONTENT_LENGTH", "CONTENT_TYPE"})
"""Keys of fields that a request may have only once (RFC 9110 §5.3)."""

_CODINGS = frozenset({"compress", "deflate", "gzip", "x-compress", "x-gzip"})
"""Transfer codings that exist and that this server does not decode (RFC 9112 §7.2)."""

_KNOWN_NAMES = 512
"""Maximum number of remembered field names, and of remembered host names."""


class HeadLimits(NamedTuple):
    """Limits of a request head."""

    line_bytes: int = 8190
    """Bytes of the request line, without its line end. RFC 9112 §3 asks for at least 8,000."""
    fields: int = 100
    field_bytes: int = 8190
    """Bytes of one field line, without its line end."""
    total_bytes: int = 64 << 10


class BadRequestError(Exception):
    """A request that the server answers itself, and whose connection then closes."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        self.status = status
        self.detail = detail
        super().__init__(detail)


class Framing(NamedTuple):
    """How a request ends, and what follows on its connection."""

    body_bytes: int
    """Bytes of the body; `CHUNKED` for a chunked body."""
    is_kept_alive: bool
    """Whether the client may send another request on the connection (RFC 9112 §9.3)."""
    expects_continue: bool
    """Whether the client waits for `100 Continue` before it sends the body (RFC 9110 §10.1.1)."""
    is_http_1_0: bool


_PLAIN = Framing(0, is_kept_alive=True, expects_continue=False, is_http_1_0=False)
_FRAMING_KEYS = frozenset(
    {"CONTENT_LENGTH", "HTTP_CONNECTION", "HTTP_EXPECT", "HTTP_TRANSFER_ENCODING"}
)


class HeadReader:
    """Reads request heads. Thread-safe.

    Args:
        limits: limits of a head.
        underscores: what happens to a field name with an underscore, which has the same environ key
            as the name with a hyphen.
    """

    def __init__(
        self, limits: HeadLimits | None = None, underscores: Literal["drop", "refuse"] = "drop"
    ) -> None:
        self._limits = limits or HeadLimits()
        self._underscores = underscores
        self._keys: dict[str, str] = {}  # field name as sent → environ key; "" to drop the field
        self._hosts: set[str] = set()  # valid values of `Host`

    def check_start(self, data: bytes, searched_bytes: int = 0) -> None:
        """Check the beginning of a head that has not arrived completely.

        Args:
            data: what has arrived.
            searched_bytes: how much of `data` an earlier call has checked.

        Raises:
            BadRequestError: no more bytes can make the head valid.
        """
        if (
            len(data) > self._limits.line_bytes
            and b"\r\n" not in data[: self._limits.line_bytes + 2]
        ):
            raise _too_long()
        if len(data) > self._limits.total_bytes:
            raise _too_large()
        if _BARE_LF.search(data, searched_bytes):
            raise _malformed("A line of the head ends without a carriage return.")

    def read(self, data: bytes, environ: "WSGIEnvironment") -> Framing:
        """Read a complete head, up to and including `HEAD_END`, into a WSGI environ.

        Raises:
            BadRequestError: the head is malformed, too large or not supported.
        """
        limits = self._limits
        if len(data) > limits.total_bytes:
            raise _too_large()
        text = data[:-2].decode("latin-1")
        line = _REQUEST_LINE.match(text)
        if line is None or line.end() - 2 > limits.line_bytes:
            raise self._bad_line(text)
        method, target, version = line.groups()
        fields = _FIELD.findall(text, line.end())
        # Each field ends one line. If every line is a field, nothing was skipped.
        if len(fields) + 1 != text.count("\n"):
            raise _malformed("A header field of the request is malformed.")
        if len(fields) > limits.fields or len(text) > limits.field_bytes:
            self._check_sizes(fields, text)
        known = self._keys
        for name, value in fields:
            key = known.get(name)
            if key is None:
                key = self._key_of(name)
            if key in environ:
                _add_value(environ, key, name, value)
            elif key:
                environ[key] = value.rstrip(" \t")
        environ["REQUEST_METHOD"] = method
        environ["SERVER_PROTOCOL"] = f"HTTP/{version}"
        self._read_target(method, target, environ)
        if version == "1.1" and method != "CONNECT" and environ.keys().isdisjoint(_FRAMING_KEYS):
            return _PLAIN
        return _framing(environ)

    def _read_target(self, method: str, target: str, environ: "WSGIEnvironment") -> None:
        """Write the target and the host name of a request into the environ (RFC 9112 §3.2)."""
        host = environ.get("HTTP_HOST")
        if host is None and environ["SERVER_PROTOCOL"] == "HTTP/1.1":
            raise _bad_host()
        environ["RAW_URI"] = target
        if target[0] != "/":
            target = _path_of(method, target, environ)
            host = environ.get("HTTP_HOST")
        if host is not None and host not in self._hosts:
            self._check_host(host)
        if "#" in target:  # a fragment is not part of a target
            target = target.partition("#")[0]
        path, _, environ["QUERY_STRING"] = target.partition("?")
        if "%" in path:
            path = unquote_to_bytes(path).decode("latin-1")
        environ["PATH_INFO"] = path

    def _check_sizes(self, fields: list[tuple[str, str]], text: str) -> None:
        longest = max(map(len, text.split("\r\n")[1:]))
        if len(fields) > self._limits.fields or longest > self._limits.field_bytes:
            raise _too_large()

    def _bad_line(self, text: str) -> BadRequestError:
        line = text.partition("\r\n")[0]
        if len(line) > self._limits.line_bytes:
            return _too_long()
        return _malformed("The request line is malformed.")

    def _check_host(self, host: str) -> None:
        if not is_host_header(host):
            raise _bad_host()
        if len(self._hosts) < _KNOWN_NAMES:
            self._hosts.add(host)

    def _key_of(self, name: str) -> str:
        if "_" in name:
            if self._underscores == "refuse":
                raise _malformed("A header field has an underscore in its name.")
            key = ""
        else:
            key = name.upper().replace("-", "_")
            key = key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{key}"
        if len(self._keys) < _KNOWN_NAMES:
            self._keys[name] = key
        return key


def _add_value(environ: "WSGIEnvironment", key: str, name: str, value: str) -> None:
    """Add another value of a repeated field (RFC 9110 §5.3; for cookies RFC 9113 §8.2.3)."""
    if key in _SINGLE:
        raise _malformed(f"The request has more than one {name} field.")
    environ[key] += ("; " if key == "HTTP_COOKIE" else ",") + value.rstrip(" \t")


def _path_of(method: str, target: str, environ: "WSGIEnvironment") -> str:
    """Return the path and query of a target that does not begin with a slash (RFC 9112 §3.2)."""
    if absolute := _ABSOLUTE.match(target):
        if not absolute[1] or "@" in absolute[1]:
            raise _malformed("The request target is malformed.")
        environ["HTTP_HOST"] = absolute[1]  # RFC 9112 §3.2.2
        rest = target[absolute.end() :]
        return rest if rest.startswith("/") else f"/{rest}"
    if method == "CONNECT" or (method == "OPTIONS" and target == "*"):
        return target
    raise _malformed("The request target is malformed.")


def _framing(environ: "WSGIEnvironment") -> Framing:
    """Return the framing of a request (RFC 9112 §6)."""
    is_http_1_0 = environ["SERVER_PROTOCOL"] == "HTTP/1.0"
    body_bytes = 0
    length, coding = environ.get("CONTENT_LENGTH"), environ.get("HTTP_TRANSFER_ENCODING")
    if coding is not None:
        _check_coding(coding, has_length=length is not None, is_http_1_0=is_http_1_0)
        body_bytes = CHUNKED
    elif length is not None:
        if not _LENGTH.fullmatch(length):
            raise _malformed("The Content-Length is not a number.")
        body_bytes = int(length)
    connection = environ.get("HTTP_CONNECTION")
    # After CONNECT, a client may send bytes that are not HTTP (RFC 9110 §9.3.6).
    is_kept_alive = not is_http_1_0 and environ["REQUEST_METHOD"] != "CONNECT"
    if connection is not None:
        options = {option.strip(" \t") for option in connection.lower().split(",")}
        is_wanted = "keep-alive" in options and environ["REQUEST_METHOD"] != "CONNECT"
        is_kept_alive = "close" not in options and (is_kept_alive or is_wanted)
    expect = environ.get("HTTP_EXPECT")
    if expect is not None and expect.lower() != "100-continue":
        raise BadRequestError(HTTPStatus.EXPECTATION_FAILED, "The expectation cannot be met.")
    return Framing(body_bytes, is_kept_alive, expect is not None and not is_http_1_0, is_http_1_0)


def _check_coding(value: str, *, has_length: bool, is_http_1_0: bool) -> None:
    """Accept only the transfer coding `chunked`, without a length (RFC 9112 §6.1, §6.3)."""
    codings = [one.strip(" \t") for one in value.lower().split(",")]
    if has_length or is_http_1_0 or codings.count("chunked") > 1 or codings == [""]:
        raise _malformed("The Transfer-Encoding of the request is malformed.")
    if codings == ["chunked"]:
        return
    if codings[-1] != "chunked" and codings[-1] in {*_CODINGS, "identity"}:
        raise _malformed("The last transfer coding of a request must be chunked.")
    raise BadRequestError(HTTPStatus.NOT_IMPLEMENTED, "The transfer coding is not supported.")


def _malformed(detail: str) -> BadRequestError:
    return BadRequestError(HTTPStatus.BAD_REQUEST, detail)


def _bad_host() -> BadRequestError:
    return _malformed("The Host header is missing or malformed.")


def _too_long() -> BadRequestError:
    return BadRequestError(HTTPStatus.REQUEST_URI_TOO_LONG, "The request line is too long.")


def _too_large() -> BadRequestError:
    return BadRequestError(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request head is too large."
    )
