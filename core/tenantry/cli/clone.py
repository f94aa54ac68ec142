"""`tenantry clone`: a second tenant with the same data, and a secret and a database of its own."""

from pathlib import Path

import click

from tenantry.capsules import (
    backup_staging,
    create_clone_database,
    is_server_database,
    read_capsule,
    write_capsule,
)
from tenantry.cli.backup import ending_in_order, progress
from tenantry.cli.output import as_json
from tenantry.cli.restore import (
    Wanted,
    database_option,
    prefix_option,
    report,
    restore_as,
    workplace,
)
from tenantry.settings import read_settings
from tenantry.tenants.lookup import load_tenant


@click.command("clone")
@click.argument("name")
@click.argument("new")
@prefix_option
@database_option
@as_json
def command(
    *, name: str, new: str, prefix: str | None, database: str | None, is_json: bool
) -> None:
    """Make tenant NEW out of tenant NAME, which may go on serving.

    NEW has a fresh secret, its own prefix and its own database: a SQLite file for SQLite; for
    PostgreSQL a new database on the same server, or a new schema beside its schema.
    """
    settings = read_settings()
    tenant, loaded = load_tenant(settings, name)
    with (
        ending_in_order(),
        progress(is_json) as tell,
        workplace(settings, new) as place,  # before a long backup
        backup_staging(settings.data_dir, name) as folder,
    ):
        path = Path(folder, "capsule")
        write_capsule(tenant, loaded, settings.data_dir, path, tell)
        capsule = read_capsule(path, tell)
        if database is None and is_server_database(tenant.database_url):
            url = create_clone_database(tenant.database_url, new, place.undo)
            database = url.render_as_string(hide_password=False)
        restored = restore_as(settings, capsule, Wanted(new, prefix, database), place, tell)
    report(new, restored, is_json=is_json)
