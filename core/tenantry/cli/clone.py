"""`tenantry clone`: copies a tenant, with a new secret and a new database."""

from pathlib import Path

import click

from tenantry.capsules import (
    RestoreRequest,
    backup_staging,
    create_clone_database,
    is_server_database,
    new_tenant_staging,
    read_capsule,
    restore_tenant,
    write_capsule,
)
from tenantry.cli.backup import capsule_progress, load_complete_tenant
from tenantry.cli.completion import complete_tenant
from tenantry.cli.new import checked_by
from tenantry.cli.output import examples, json_option
from tenantry.cli.restore import database_option, prefix_option, print_restored
from tenantry.cli.signals import ignore_signals, interrupting_signals
from tenantry.grammar import check_tenant_name
from tenantry.settings import read_settings


@click.command("clone", epilog=examples("tenantry clone shop shop-test"))
@click.argument("name", shell_complete=complete_tenant)
@click.argument("new", callback=checked_by(check_tenant_name))
@prefix_option
@database_option
@json_option
def command(
    *, name: str, new: str, prefix: str | None, database: str | None, is_json: bool
) -> None:
    """Copy a tenant under a new name.

    Create tenant NEW with the data of tenant NAME, which can serve requests in the meantime. NEW
    gets a new secret, a new URL prefix and a new database. If NAME uses SQLite, the new database is
    a file. If NAME uses PostgreSQL, the new database is on the same server. If NAME uses a schema
    other than `public`, NEW gets a new schema in the same database.
    """
    settings = read_settings()
    tenant, loaded = load_complete_tenant(settings, name)
    options = tenant.database_options if database is None else {}
    with (
        interrupting_signals(),
        capsule_progress(is_json) as on_progress,
        new_tenant_staging(settings, new) as staging,  # fails early if the name is taken
        backup_staging(settings.data_dir, name) as folder,
    ):
        path = Path(folder, "capsule")
        write_capsule(tenant, loaded, settings.data_dir, path, on_progress)
        capsule = read_capsule(path, on_progress)
        if database is None and is_server_database(tenant.database_url):
            url = create_clone_database(tenant.database_url, new, staging.undo, options)
            database = url.render_as_string(hide_password=False)
        restored = restore_tenant(
            settings,
            capsule,
            RestoreRequest(
                new,
                prefix,
                database,
                database_options=options,
                app_dir=None if tenant.app_dir == str(settings.app_dir) else tenant.app_dir,
                with_templates=True,
            ),
            staging,
            on_progress=on_progress,
            before_commit=ignore_signals,
        )
    print_restored(new, restored, is_json=is_json)
