"""`tenantry serve`: prints the tenants' addresses, and then runs gunicorn."""

import os
import re
import sys

import click

from tenantry.app.trial_build import try_builds
from tenantry.cli.completion import complete_tenant
from tenantry.cli.output import count, examples
from tenantry.errors import Problem, TenantryError
from tenantry.server.listeners import Listener, SameListenerError, check_listeners
from tenantry.settings import HostSettings, environment_variable, read_settings
from tenantry.tenants.catalogue import Catalogue, check_tenant_exists, scan_tenants
from tenantry.tenants.model import Tenant

GUNICORN_CONFIG = "python:tenantry.server.gunicorn_conf"

_BIND = re.compile(r"unix:.+|(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})")


def _check_bind(_: click.Context, __: click.Parameter, bind: str) -> str:
    match = _BIND.fullmatch(bind)
    if match is None:
        raise click.BadParameter(f"{bind!r}: write it like 127.0.0.1:8000 or unix:/run/t.sock.")
    if match[1] is not None and not 1 <= int(match[1]) <= 65535:  # noqa: PLR2004 - the last TCP port
        raise click.BadParameter(f"{bind!r}: use a port from 1 to 65535.")
    return bind


@click.command(
    "serve", epilog=examples("tenantry serve", "tenantry serve --bind 127.0.0.1:8080 --workers 4")
)
@click.option(
    "--bind", default="127.0.0.1:8000", show_default=True, callback=_check_bind, metavar="H:P",
    help="Address to serve tenants at: HOST:PORT or unix:PATH.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N",
    help="Number of worker processes.  [default: one per processor, 2 to 8]",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N",
    help="Number of concurrent requests per worker.  [default: 8]",
)  # fmt: skip
@click.option("--reload", "is_reloading", is_flag=True, help="Restart when code changes.")
@click.option(
    "--only", multiple=True, metavar="NAME", shell_complete=complete_tenant,
    help="Tenant to serve. Repeatable.  [default: all tenants]",
)  # fmt: skip
def command(
    *,
    bind: str,
    workers: int | None,
    threads: int | None,
    is_reloading: bool,
    only: tuple[str, ...],
) -> None:
    """Serve all tenants with gunicorn.

    Print each tenant's address and each problem, and run gunicorn with Tenantry's configuration. If
    a tenant file is invalid, the other tenants start. A change of a tenant file takes effect within
    2 s, without a restart.
    """
    if only:
        os.environ[environment_variable("only")] = ",".join(only)  # the workers read this variable
    settings = read_settings()
    for name in settings.only:
        check_tenant_exists(settings, name)
    catalogue = scan_tenants(settings)
    listeners = [Listener("--bind", bind)]
    if settings.admin_bind != "off":
        listeners.append(Listener(environment_variable("admin_bind"), settings.admin_bind))
    try:
        check_listeners(listeners)
    except SameListenerError as error:
        raise click.UsageError(str(error)) from error
    for line in start_report(settings, catalogue, bind):
        click.echo(line)
    arguments = ["-c", GUNICORN_CONFIG]
    for listener in listeners:
        arguments += ["--bind", listener.bind]
    arguments += ["--workers", str(workers)] if workers else []
    arguments += ["--threads", str(threads)] if threads else []
    arguments += ["--reload"] if is_reloading else []
    _replace_process(arguments)


def _replace_process(arguments: list[str]) -> None:
    """Replace this process with gunicorn, to free the memory of imported modules."""
    sys.stdout.flush()
    # With the option -P, the current folder is not the first item of sys.path.
    words = [sys.executable, "-P", "-m", "tenantry.server", *arguments]
    try:
        os.execv(sys.executable, words)  # noqa: S606 - no shell is involved
    except OSError as error:
        raise TenantryError(f"cannot start {sys.executable}: {error.strerror}.") from error


def start_report(settings: HostSettings, catalogue: Catalogue, bind: str) -> list[str]:
    """Return a line for the address of each tenant, and a line for each problem."""
    origin = f"{bind}:" if bind.startswith("unix:") else f"http://{bind}"
    rows = [(tenant.name, _url(tenant, bind, origin)) for tenant in catalogue.tenants]
    width = max((len(name) for name, _ in rows), default=0)
    problems = [*catalogue.problems, *_endpoint_problems(settings, catalogue)]
    lines = [f"{count(len(rows), 'tenant')} from {settings.tenants_dir}:"]
    lines += [f"  {name:<{width}}  {url}" for name, url in rows]
    lines += [f"rejected: {problem}" for problem in problems]
    lines += [f"disabled: {tenant.file}" for tenant in catalogue.disabled]
    if settings.admin_bind != "off":
        lines.append(f"for operators: http://{settings.admin_bind}/-/readyz")
    return lines


def _url(tenant: Tenant, bind: str, origin: str) -> str:
    """Return the URL of a tenant without a proxy in front."""
    name, root = tenant.address.canonical
    if name and not bind.startswith("unix:"):
        origin = f"http://{name}:{bind.rpartition(':')[2]}"
    return f"{origin}{root}/"


def _endpoint_problems(settings: HostSettings, catalogue: Catalogue) -> list[Problem]:
    found = try_builds(catalogue.tenants, settings.data_dir, only_parts=True)
    return [problem for _, problem in found.problems]
