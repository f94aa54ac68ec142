"""Creates tenants, app instances and mounts for the tests of routing."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from werkzeug.test import create_environ, run_wsgi_app

from conftest import KEY
from tenantry.routing.build_pool import BuildPool
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import parse_tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Builder = Callable[[Tenant], Instance]


def make_tenant(name: str = "acme", **keys: object) -> Tenant:
    """Return a tenant with the given keys."""
    values = {"SECRET_KEY": f"{name}-{KEY}", "BLUEPRINTS": ["landing"]} | keys
    return parse_tenant(name, values, data_dir=Path("instance"))


def make_mount(
    tenant: Tenant,
    build: Builder,
    *,
    clock: Callable[[], float] = time.monotonic,
    note_build_end: Callable[[], object] = lambda: None,
) -> Mount:
    """Return the mount of a tenant with a valid tenant file."""
    pool = BuildPool(note_build_end)
    mount = Mount(tenant.name, tenant.address, build, clock=clock, build_pool=pool)
    mount.accept(tenant)
    return mount


def saying(text: str) -> "WSGIApplication":
    """Return an app that answers with a text, and with `SCRIPT_NAME` and `PATH_INFO`."""

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        start_response("200 OK", [])
        return [f"{text} {environ.get('SCRIPT_NAME')} {environ['PATH_INFO']}".encode()]

    return app


def build(tenant: Tenant) -> Instance:
    """Build an app instance that answers with the tenant's name."""
    return Instance(saying(tenant.name), lambda: None)


def get(
    app: "WSGIApplication", path: str = "/acme/", **headers: str
) -> tuple[int, dict[str, str], str]:
    """Return the status, headers and body of a GET request.

    For a mount, the path is relative to the mount's prefix. `headers` are keys of the environ.
    """
    script_name = app.prefix if isinstance(app, Mount) else ""
    environ = create_environ(environ_overrides={"PATH_INFO": path, "SCRIPT_NAME": script_name})
    environ |= headers
    body, status, headers = run_wsgi_app(app, environ, buffered=True)
    return int(status[:3]), dict(headers), b"".join(body).decode()
