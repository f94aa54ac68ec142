"""`tenantry list`: every tenant."""

from typing import Any

import click

from config.settings import read_settings
from core.catalogue import Catalogue
from core.cli.output import as_json, print_json, print_table
from core.cli.tenants import scan
from core.tenant import Tenant

COLUMNS = ("name", "prefix", "state", "endpoints")


@click.command("list")
@as_json
def command(is_json: bool) -> None:
    """Show every tenant: name, prefix, state, endpoints."""
    rows = list_tenants(scan(read_settings()))
    if is_json:
        print_json(rows)
    else:
        print_table(
            COLUMNS,
            [[r["name"], r["prefix"], r["state"], ", ".join(r["endpoints"])] for r in rows],
        )


def list_tenants(catalogue: Catalogue) -> list[dict[str, Any]]:
    """Return a row per tenant, in the order of names, as JSON shows it."""
    rows = [_row(tenant, _state(tenant)) for tenant in catalogue.tenants + catalogue.disabled]
    rows += [
        {"name": one.name, "prefix": one.prefix or "", "state": "failed", "endpoints": []}
        for one in catalogue.rejected
    ]
    return sorted(rows, key=lambda row: str(row["name"]))


def _state(tenant: Tenant) -> str:
    if not tenant.enabled:
        return "disabled"
    return "maintenance" if tenant.maintenance else "idle"


def _row(tenant: Tenant, state: str) -> dict[str, Any]:
    return {
        "name": tenant.name,
        "prefix": tenant.url_prefix,
        "state": state,
        "endpoints": list(tenant.blueprints),
    }
