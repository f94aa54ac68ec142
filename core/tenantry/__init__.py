"""Tenantry: many isolated Flask apps, one for each client group, in one gunicorn.

Each public name is imported on first use, so that a tenant file's `from tenantry import secret`
takes only milliseconds.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenantry.app.tenant_context import tenant
    from tenantry.database.session import db
    from tenantry.endpoints.current_tenant import current_tenant
    from tenantry.endpoints.tokens import serializer
    from tenantry.files.quota import FolderQuota
    from tenantry.http.request_record import outgoing_headers
    from tenantry.tenants.secrets import secret

__all__ = [
    "FolderQuota", "current_tenant", "db", "outgoing_headers", "secret", "serializer", "tenant",
]  # fmt: skip

_HOMES = {
    "FolderQuota": ("tenantry.files.quota", "FolderQuota"),
    "current_tenant": ("tenantry.endpoints.current_tenant", "current_tenant"),
    "db": ("tenantry.database.session", "db"),
    "outgoing_headers": ("tenantry.http.request_record", "outgoing_headers"),
    "secret": ("tenantry.tenants.secrets", "secret"),
    "serializer": ("tenantry.endpoints.tokens", "serializer"),
    "tenant": ("tenantry.app.tenant_context", "tenant"),
}


def __getattr__(name: str) -> Any:
    from importlib import import_module  # noqa: PLC0415 - keeps `import tenantry` fast

    if name not in _HOMES:
        planned = import_module("tenantry.planned")
        if name in planned.PLANNED_NAMES:
            # `from tenantry import NAME` shows the text of an ImportError, but replaces that of an
            # AttributeError.
            raise ImportError(f"tenantry.{name} {planned.PLANNED}", name="tenantry")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = globals()[name] = getattr(import_module(module), attribute)
    return value
