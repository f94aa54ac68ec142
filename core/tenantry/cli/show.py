"""`tenantry show`: the effective configuration of one tenant, secrets masked."""

from collections.abc import Iterable
from typing import Any

import click

from tenantry.cli.output import as_json, print_json, print_table
from tenantry.observability.redaction import MASK, redact_value
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.lookup import load_tenant
from tenantry.tenants.model import KEYS, Tenant

_SECRET_KEYS = ("SECRET_KEY", "SECRET_KEY_FALLBACKS")
_FROM_HOST = ("max_concurrent_requests", "trusted_hosts", "deadline_s")


@click.command("show")
@click.argument("name")
@as_json
def command(name: str, is_json: bool) -> None:
    """Show the effective configuration of tenant NAME, secrets masked."""
    settings = read_settings()
    tenant, loaded = load_tenant(settings, name)
    shown = effective_config(settings, tenant, loaded.secrets)
    if is_json:
        print_json(shown)
    else:
        print_table(("key", "value"), [[key, _text(value)] for key, value in shown.items()])


def effective_config(
    settings: HostSettings, tenant: Tenant, secrets: Iterable[str] = ()
) -> dict[str, Any]:
    """Return every key with the value that counts; a secret is `********`.

    `secrets` are further values that must not be shown, wherever they occur.
    """
    values: dict[str, Any] = tenant.config()
    for field in _FROM_HOST:
        if values[KEYS[field]] is None:
            host_value = getattr(settings, field)
            values[KEYS[field]] = list(host_value) if isinstance(host_value, tuple) else host_value
    known = [*secrets, values["SECRET_KEY"], *values["SECRET_KEY_FALLBACKS"]]
    if tenant.database_url.password:
        known.append(tenant.database_url.password)
    shown = {key: redact_value(key, value, known) for key, value in values.items()}
    shown |= {key: MASK for key in _SECRET_KEYS if values[key]}
    return {"name": tenant.name, "file": tenant.file, "digest": tenant.digest} | shown


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
