"""`tenantry show`: shows the effective configuration of a tenant."""

from collections.abc import Iterable
from typing import Any

import click

from tenantry.cli.completion import complete_tenant
from tenantry.cli.output import examples, json_option, print_json, print_table
from tenantry.observability.redaction import MASK, SIGNING_KEYS, redact_value
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import load_tenant
from tenantry.tenants.model import KEYS, Tenant

_HOST_DEFAULTS = ("max_concurrent_requests", "trusted_hosts", "deadline_s", "deadline_action")
"""Keys whose default is the host setting of the same name."""


@click.command("show", epilog=examples("tenantry show shop"))
@click.argument("name", shell_complete=complete_tenant)
@json_option
def command(name: str, is_json: bool) -> None:
    """Show a tenant's configuration.

    Show every key of tenant NAME with its effective value. Secrets are masked with asterisks.
    """
    settings = read_settings()
    tenant, loaded = load_tenant(settings, name)
    config = effective_config(settings, tenant, loaded.secrets)
    if is_json:
        print_json(config)
    else:
        print_table(("key", "value"), [[key, _text(value)] for key, value in config.items()])


def effective_config(
    settings: HostSettings, tenant: Tenant, secrets: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the effective value of each key in a tenant file.

    Secret values, and the texts in `secrets`, are replaced with `********`.
    """
    values: dict[str, Any] = tenant.config()
    for field in _HOST_DEFAULTS:
        if values[KEYS[field]] is None:
            default = getattr(settings, field)
            values[KEYS[field]] = list(default) if isinstance(default, tuple) else default
    hidden = [*secrets, values["SECRET_KEY"], *values["SECRET_KEY_FALLBACKS"]]
    if tenant.database_url.password:
        hidden.append(tenant.database_url.password)
    config = {key: redact_value(key, value, hidden) for key, value in values.items()}
    config |= {key: MASK for key in SIGNING_KEYS if values[key]}
    return {"name": tenant.name, "file": tenant.file, "digest": tenant.digest} | config


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
