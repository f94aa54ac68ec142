"""Tests of the audit use this module to build tenants in a host."""

from multiprocessing import Value

from flask import Flask

from conftest import KEY
from tenantry.audit.finding import AuditedTenant
from tenantry.host import Host
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import parse_tenant

# Werkzeug's debugger creates shared memory, which stays open and must not look like a test's leak.
Value("B")


def make_tenant(host: Host, name: str, **keys: object) -> Tenant:
    """Return the tenant that a tenant file with the given keys would define."""
    values = {"SECRET_KEY": f"{name}-{KEY}", "BLUEPRINTS": ["landing"]}
    return parse_tenant(name, values | keys, data_dir=host.settings.data_dir)


def build(host: Host, *tenants: tuple[Tenant, str]) -> list[AuditedTenant]:
    """Build tenants in a host.

    Each tenant comes with a client key, or with "" if the tenant admits everybody.
    """
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
