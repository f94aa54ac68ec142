"""`tenantry show`: the effective configuration of one tenant, secrets masked."""

import re
from typing import Any

import click

from config.settings import HostSettings, read_settings
from core.cli.output import as_json, print_json, print_table
from core.cli.tenants import one_tenant
from core.tenant import KEYS, Tenant

MASK = "********"

_SECRET_KEYS = {"SECRET_KEY", "SECRET_KEY_FALLBACKS", "CLIENTS", "OIDC"}
_SECRET_WORDS = re.compile(
    r"SECRET|PASSW|TOKEN|CREDENTIAL|PRIVATE|SALT|DSN|(^|_)(KEY|PWD|AUTH)(_|$)"
)
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^@/\s]+@")
_FROM_HOST = ("max_concurrent_requests", "trusted_hosts", "deadline_s")


@click.command("show")
@click.argument("name")
@as_json
def command(name: str, is_json: bool) -> None:
    """Show the effective configuration of tenant NAME, secrets masked."""
    settings = read_settings()
    shown = effective_config(settings, one_tenant(settings, name))
    if is_json:
        print_json(shown)
    else:
        print_table(("key", "value"), [[key, _text(value)] for key, value in shown.items()])


def effective_config(settings: HostSettings, tenant: Tenant) -> dict[str, Any]:
    """Return every key with the value that counts; a secret is `********`."""
    values: dict[str, Any] = tenant.config()
    values["DATABASE_URI"] = tenant.database_url.render_as_string(hide_password=True)
    for field in _FROM_HOST:
        if values[KEYS[field]] is None:
            values[KEYS[field]] = getattr(settings, field)
    head = {"name": tenant.name, "file": tenant.file, "digest": tenant.digest}
    return head | {key: mask(key, value) for key, value in values.items()}


def mask(key: str, value: Any) -> Any:
    """Return `value`, or `********` where the key's name or a URL in it says that it is secret."""
    if key in _SECRET_KEYS or _SECRET_WORDS.search(key.upper()):
        return MASK if value else value
    if isinstance(value, dict):
        return {inner: mask(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask("", item) for item in value]
    return _URL_PASSWORD.sub(rf"\1{MASK}@", value) if isinstance(value, str) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
