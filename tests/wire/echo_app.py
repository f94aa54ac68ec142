"""The WSGI app behind the wire corpus: returns as JSON what the app saw of a request.

The app runs under every compared server, so the app uses only WSGI. Unexpected errors, such as the
error of a malformed body, leave the app, so that the server answers.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

Environ = dict[str, Any]
Start = Callable[..., Any]

KEYS = (
    *("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "RAW_URI", "QUERY_STRING", "SERVER_PROTOCOL"),
    *("CONTENT_LENGTH", "CONTENT_TYPE", "REMOTE_ADDR", "REMOTE_PORT", "wsgi.url_scheme"),
    "tenantry.admitted",
)
LARGE_BYTES = 1000
"""Maximum size in bytes of a body that the app returns. For a larger body, the app returns only the
length and the SHA-256 hash."""


def application(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Answer by the path; any other path returns what the app saw."""
    if environ["REQUEST_METHOD"] == "CONNECT":
        return _send(start_response, b"", "405 Method Not Allowed", Allow="GET, POST")
    special = _SPECIAL.get(environ["PATH_INFO"])
    if special is not None:
        return special(environ, start_response)
    body = json.dumps(_seen(environ, environ["wsgi.input"].read())).encode()
    return _send(
        start_response,
        body,
        Content_Type="application/json",
        X_Seen_Method=environ["REQUEST_METHOD"],
    )


def _seen(environ: Environ, body: bytes) -> dict[str, Any]:
    wanted = {key: environ[key] for key in KEYS if key in environ}
    wanted |= {key: value for key, value in environ.items() if key.startswith("HTTP_")}
    short = body.decode("latin-1") if len(body) <= LARGE_BYTES else None
    digest = hashlib.sha256(body).hexdigest()
    return wanted | {"body": short, "body_bytes": len(body), "body_sha256": digest}


def _send(
    start_response: Start, body: bytes, status: str = "200 OK", **headers: str
) -> list[bytes]:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    start_response(status, [*named, ("Content-Length", str(len(body)))])
    return [body]


# -- special paths --------------------------------------------------------------------------------


def _unread(environ: Environ, start_response: Start) -> list[bytes]:
    body = json.dumps(_seen(environ, b"")).encode()
    return _send(start_response, body, Content_Type="application/json")


def _pid(environ: Environ, start_response: Start) -> list[bytes]:
    del environ
    return _send(start_response, str(os.getpid()).encode())


def _no_content(environ: Environ, start_response: Start) -> list[bytes]:
    del environ
    start_response("204 No Content", [("Content-Length", "5")])
    return [b"a bug"]


def _not_modified(environ: Environ, start_response: Start) -> list[bytes]:
    del environ
    start_response("304 Not Modified", [("ETag", '"1"')])
    return [b"a bug"]


def _stream(environ: Environ, start_response: Start) -> Iterable[bytes]:
    headers = [("Content-Type", "text/plain"), ("X-Seen-Method", environ["REQUEST_METHOD"])]
    start_response("200 OK", headers)
    return iter([b"one", b"", b"two"])


def _large(environ: Environ, start_response: Start) -> Iterable[bytes]:
    del environ
    start_response("200 OK", [("Content-Length", str(1 << 20))])
    return iter([b"x" * (1 << 16)] * 16)


def _short(environ: Environ, start_response: Start) -> list[bytes]:
    del environ
    start_response("200 OK", [("Content-Length", "100")])
    return [b"too short"]


def _long(environ: Environ, start_response: Start) -> list[bytes]:
    del environ
    start_response("200 OK", [("Content-Length", "5")])
    return [b"right, and too long"]


def _broken_stream(environ: Environ, start_response: Start) -> Iterable[bytes]:
    del environ
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"the start"
    raise ValueError("the app fails")


def _error(environ: Environ, start_response: Start) -> list[bytes]:
    del environ, start_response
    raise ValueError("the app fails")


def _split_header(environ: Environ, start_response: Start) -> list[bytes]:
    del environ
    return _send(start_response, b"", X_A="a\r\nX-B: b")


_SPECIAL: dict[str, Callable[[Environ, Start], Iterable[bytes]]] = {
    "/unread": _unread,
    "/pid": _pid,
    "/-/livez": _pid,
    "/204": _no_content,
    "/304": _not_modified,
    "/stream": _stream,
    "/large": _large,
    "/short": _short,
    "/long": _long,
    "/broken-stream": _broken_stream,
    "/error": _error,
    "/split-header": _split_header,
}
