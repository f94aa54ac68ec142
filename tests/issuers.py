"""A real OpenID Connect issuer for tests: an HTTP server on the loopback interface."""

import base64
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, Key
from joserfc.jws import JWSRegistry

ALGORITHMS = ("RS256", "PS384", "ES256", "ES384", "ES512", "EdDSA", "Ed25519", "HS256")

ES256 = JWSRegistry.algorithms["ES256"]

DISCOVERY = "/.well-known/openid-configuration"


class Issuer:
    """An OpenID Connect issuer whose responses a test can change.

    `running_issuer` starts and stops the server.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys: list[Key] = [new_key("one")]
        self.requested_paths: list[str] = []
        self.replies: dict[str, tuple[int, dict[str, str], bytes]] = {}
        """Maps a path to the status, headers and body that replace the normal response."""
        self.may_answer = threading.Event()
        self.may_answer.set()

    def reply(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return the response for a request path."""
        self.requested_paths.append(path)
        self.may_answer.wait()
        if path in self.replies:
            return self.replies[path]
        documents: dict[str, Any] = {
            DISCOVERY: {"issuer": self.url, "jwks_uri": f"{self.url}/keys?v=1"},
            "/keys?v=1": {"keys": [key.as_dict(private=False) for key in self.keys]},
        }
        if path in documents:
            return 200, {}, json.dumps(documents[path]).encode()
        return 404, {}, b""

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return valid token claims for the audience `shop`, with the given changes.

        If a value is None, the claim is removed.
        """
        now = int(time.time())
        good = {
            "iss": self.url, "aud": "shop", "sub": "ada", "iat": now, "nbf": now, "exp": now + 300,
        }  # fmt: skip
        return {name: value for name, value in (good | changes).items() if value is not None}

    def token(
        self, key: Key | None = None, *, header: dict[str, Any] | None = None, **changes: Any
    ) -> str:
        """Return a token with the given claims, signed with the first key by default."""
        key = key or self.keys[0]
        named = {"alg": "ES256", "kid": key.kid} | (header or {})
        kept = {name: value for name, value in named.items() if value is not None}
        registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        return jwt.encode(kept, self.claims(**changes), key, registry=registry)

    def signed(self, header: object, payload: bytes) -> str:
        """Return a token with any header and payload, signed with the first key."""
        text = f"{part(header)}.{part(payload)}"
        return f"{text}.{part(ES256.sign(text.encode(), self.keys[0]))}"


def part(value: object) -> str:
    """Return one part of a token in Base64. A part that is not bytes is first converted to JSON."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def new_key(kid: str) -> ECKey:
    """Return a new key for `ES256`."""
    return ECKey.generate_key("P-256", {"kid": kid})


@contextlib.contextmanager
def running_issuer() -> Iterator[Issuer]:
    """Run an OpenID Connect issuer until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = issuer.reply(self.path)
            with contextlib.suppress(OSError):  # the client closed the connection
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Suppress the server's log lines."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = False

    with Quiet(("127.0.0.1", 0), Handler) as server:
        issuer = Issuer(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield issuer
        finally:
            issuer.may_answer.set()
            server.shutdown()
            thread.join()
