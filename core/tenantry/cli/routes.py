"""`tenantry routes`: what one tenant answers."""

from typing import Any

import click

from tenantry.app.factory import close_app, create_app
from tenantry.cli.output import as_json, print_json, print_table
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.lookup import load_tenant
from tenantry.tenants.model import Tenant


@click.command("routes")
@click.argument("name")
@as_json
def command(name: str, is_json: bool) -> None:
    """Show rule, methods and endpoint of everything that tenant NAME answers."""
    settings = read_settings()
    rows = list_routes(settings, load_tenant(settings, name)[0])
    if is_json:
        print_json(rows)
    else:
        columns = ("rule", "methods", "endpoint")
        print_table(columns, [[r["rule"], ",".join(r["methods"]), r["endpoint"]] for r in rows])


def list_routes(settings: HostSettings, tenant: Tenant) -> list[dict[str, Any]]:
    """Return a row per rule, sorted; builds the tenant's app and drops it again."""
    app = create_app(tenant, data_dir=settings.data_dir)
    try:
        rows: list[dict[str, Any]] = [
            {
                "rule": f"{tenant.url_prefix}{rule.rule}",
                "methods": sorted(rule.methods or ()),
                "endpoint": rule.endpoint,
            }
            for rule in app.url_map.iter_rules()
        ]
    finally:
        close_app(app)
    return sorted(rows, key=lambda row: (str(row["rule"]), str(row["endpoint"])))
