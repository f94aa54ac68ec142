"""Tenants built in a host, as an audit examines them."""

from multiprocessing import Value

from flask import Flask

from conftest import KEY
from tenantry.audit.finding import AuditedTenant
from tenantry.host import Host
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import parse_tenant

Value("B")  # Werkzeug's debugger creates one. Its memory stays, and is not a leak of a test.


def make_tenant(host: Host, name: str, **keys: object) -> Tenant:
    """Return a tenant, as a file with these keys would define it."""
    values = {"SECRET_KEY": f"{name}-{KEY}", "BLUEPRINTS": ["landing"]}
    return parse_tenant(name, values | keys, data_dir=host.settings.data_dir)


def build(host: Host, *tenants: tuple[Tenant, str]) -> list[AuditedTenant]:
    """Build tenants, each given with the key of one of its clients; an open one with ""."""
    audited = []
    mounts = host.serve_only([tenant for tenant, _ in tenants])
    for mount, (tenant, key) in zip(mounts, tenants, strict=True):
        mount.ensure_instance()
        assert mount.instance is not None
        assert mount.instance.app is not None
        app = mount.instance.app()
        assert isinstance(app, Flask)
        audited.append(AuditedTenant(tenant, app, host, key))
    return audited
