"""The app behind the fuzzer: three tenants that return what a response must not mix up.

The app is routed, admitted and accounted like the host, so a response can name the tenant that the
request counted for, and the tenant whose app answered.
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mutation import PREFIXES

from tenantry.http.environ import REQUEST_RECORD
from tenantry.middleware.accounting import Accounting
from tenantry.middleware.edge import Edge
from tenantry.middleware.fair_share import FairShare
from tenantry.middleware.in_flight import RequestLimits, RequestsInFlight
from tenantry.observability.usage_counters import UsageCounters
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.routing.router import Router
from tenantry.server.admission import TenantAdmission
from tenantry.tenants.validation import parse_tenant

Environ = dict[str, Any]
Start = Callable[..., Any]

_NONCE = re.compile("n[0-9]{9}[abm]")
_PREFIX_OF = {prefix.rpartition("/")[2]: prefix for prefix in PREFIXES}
_METHOD = re.compile("[A-Z]{1,20}")


def _echo(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Return the request's nonce as a header and as the body, and both tenants as headers."""
    environ["wsgi.input"].read()
    nonce = environ.get("HTTP_X_NONCE", "")
    nonce = nonce if _NONCE.fullmatch(nonce) else "none"
    method = environ["REQUEST_METHOD"]
    admitted = _PREFIX_OF.get(environ[REQUEST_RECORD].tenant, "")
    headers = [
        ("X-Nonce", nonce),
        ("X-Tenant", environ["SCRIPT_NAME"].lstrip("/")),
        ("X-Admitted", admitted),
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


def _mount(prefix: str) -> Mount:
    name = prefix.rpartition("/")[2]
    limits = RequestLimits(max_requests=None, deadline_s=30.0, is_answering=False)
    mount = Mount(
        name, f"/{prefix}", lambda _: Instance(_echo, lambda: None), limits_of=lambda _: limits
    )
    values = {"SECRET_KEY": f"{name}-" * 12, "BLUEPRINTS": ["landing"], "URL_PREFIX": f"/{prefix}"}
    mount.accept(parse_tenant(name, values, data_dir=Path()))
    return mount


class _App:
    """The tenants, mounted as in the host, and the admission of their worker."""

    def __init__(self) -> None:
        router = Router(fallback=_root)
        router.replace([_mount(prefix) for prefix in PREFIXES])
        edge = Edge(router.route, _root, None)
        in_flight = RequestsInFlight(FairShare(None))
        accounting = Accounting(in_flight, UsageCounters())
        self.admission = TenantAdmission(
            edge.route, accounting, in_flight, {}, known_over=lambda _: None
        )

    def __call__(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        """Answer a request that the worker has admitted."""
        return self.admission.app(environ, start_response)


application = _App()
