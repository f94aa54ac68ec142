"""`tenantry routes`: shows the routes of a tenant."""

from typing import Any

import click

from tenantry.app.factory import close_app, create_app
from tenantry.app.trial_build import moved, throw_away_folder
from tenantry.cli.completion import complete_tenant
from tenantry.cli.output import examples, json_option, print_json, print_table
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import load_tenant
from tenantry.tenants.model import Tenant


@click.command("routes", epilog=examples("tenantry routes shop"))
@click.argument("name", shell_complete=complete_tenant)
@json_option
def command(name: str, is_json: bool) -> None:
    """Show the routes of a tenant.

    Build tenant NAME, and show the URL rule, the methods and the Flask endpoint of each route.
    """
    settings = read_settings()
    rows = list_routes(settings, load_tenant(settings, name)[0])
    if is_json:
        print_json(rows)
    else:
        cells = [[row["rule"], ",".join(row["methods"]), row["endpoint"]] for row in rows]
        print_table(("rule", "methods", "endpoint"), cells)


def list_routes(settings: HostSettings, tenant: Tenant) -> list[dict[str, Any]]:
    """Build and close the app of a tenant.

    Return a row for each URL rule, in the order of the rules.
    """
    with throw_away_folder() as folder:
        app = create_app(moved(tenant, settings.data_dir, folder), data_dir=folder)
        try:
            rows: list[dict[str, Any]] = [
                {
                    "rule": f"{tenant.address.text.rstrip('/')}{rule.rule}",
                    "methods": sorted(rule.methods or ()),
                    "endpoint": rule.endpoint,
                }
                for rule in app.url_map.iter_rules()
            ]
        finally:
            close_app(app)
    return sorted(rows, key=lambda row: (str(row["rule"]), str(row["endpoint"])))
