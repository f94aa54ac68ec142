"""The app behind the fuzzer: three tenants that return what a response must not mix up.

The app has an `admission`, so Tenantry's worker looks for the tenant of each request before a
thread runs the request. The worker puts that tenant into the environ as `tenantry.admitted`.
"""

import os
import re
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from mutation import PREFIXES
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from tenantry.middleware.fair_share import FairShare
from tenantry.server.admission import Admission

Environ = dict[str, Any]
Start = Callable[..., Any]

_NONCE = re.compile("n[0-9]{9}[abm]")
_METHOD = re.compile("[A-Z]{1,20}")


def _echo(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Return the request's nonce as a header and as the body, and both tenants as headers."""
    environ["wsgi.input"].read()
    nonce = environ.get("HTTP_X_NONCE", "")
    nonce = nonce if _NONCE.fullmatch(nonce) else "none"
    method = environ["REQUEST_METHOD"]
    admitted = environ.get("tenantry.admitted", "absent")
    headers = [
        ("X-Nonce", nonce),
        ("X-Tenant", environ["SCRIPT_NAME"].lstrip("/")),
        ("X-Admitted", "" if admitted is None or admitted.startswith("/-/") else admitted),
        ("X-Seen-Method", method if _METHOD.fullmatch(method) else "odd"),
        ("Content-Length", str(len(nonce))),
    ]
    start_response("405 No tunnel" if method == "CONNECT" else "200 OK", headers)
    return [nonce.encode()]


def _root(environ: Environ, start_response: Start) -> Iterable[bytes]:
    if environ["PATH_INFO"] not in ("/pid", "/-/livez"):
        return _echo(environ, start_response)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


class _App(DispatcherMiddleware):
    """The tenants, mounted as the host mounts them, and the admission of their worker."""

    def __init__(self) -> None:
        super().__init__(_root, {f"/{prefix}": _echo for prefix in PREFIXES})
        mounts = {f"/{prefix}": SimpleNamespace(name=prefix) for prefix in PREFIXES}
        everybody = FairShare(None)
        self.admission = Admission(everybody, mounts.get, lambda _: False)  # type: ignore[arg-type]


application = _App()
