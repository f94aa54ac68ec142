"""`tenantry run`: runs a Flask command with the app of a tenant."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

import click
from flask import Flask
from flask.cli import FlaskGroup
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from tenantry.app.factory import close_app, create_app
from tenantry.cli.completion import complete_tenant
from tenantry.cli.output import examples
from tenantry.migrations.guard import upgrade_default_database
from tenantry.settings import read_settings
from tenantry.tenants.catalogue import load_tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


@click.command(
    "run",
    context_settings={"ignore_unknown_options": True},
    epilog=examples("tenantry run shop -- routes", "tenantry run shop -- run --debug"),
)
@click.argument("name", shell_complete=complete_tenant)
@click.argument("args", nargs=-1, required=True, type=click.UNPROCESSED)
def command(name: str, args: tuple[str, ...]) -> None:
    """Run a Flask command with the app of a tenant.

    ARGS is a Flask command: shell, routes, run or a command of the app. Write -- before the Flask
    command. The Flask command run starts Flask's development server for tenant NAME, without limits
    and client keys. The development server serves the tenant at / and at the tenant's URL prefix.
    """
    settings = read_settings()
    tenant = load_tenant(settings, name, creates_secrets=True)[0]
    with ExitStack() as apps:

        def create() -> Flask:
            app = create_app(tenant, data_dir=settings.data_dir)
            apps.callback(close_app, app)
            upgrade_default_database(app)
            mounts: dict[str, WSGIApplication] = {tenant.address.root: app.wsgi_app}
            app.wsgi_app = DispatcherMiddleware(app.wsgi_app, mounts)  # type: ignore[method-assign]
            return app

        group = FlaskGroup(create_app=create, load_dotenv=False)
        group.main(args=list(args), prog_name=f"tenantry run {name} --")
