"""Creates small app instances and requests for the tests of reloading."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from conftest import KEY
from tenantry.routing.instance import Instance
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import parse_tenant


def make_tenant(data_dir: Path, name: str = "acme", **keys: object) -> Tenant:
    """Return a tenant with the given keys."""
    values = {"SECRET_KEY": name + KEY, "BLUEPRINTS": ["landing"]} | keys
    file, digest = f"{name}.py", f"digest-{name}"
    return parse_tenant(name, values, file=file, digest=digest, data_dir=data_dir)


def empty_app(*_: object) -> Iterable[bytes]:
    """Return an empty response."""
    return []


def open_request(instance: Instance) -> Any:
    """Return the body of a request that is in flight until the body is closed."""
    return instance.answer({}, lambda *_: lambda _: None)
