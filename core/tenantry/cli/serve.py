"""`tenantry serve`: prints the tenants' addresses, then replaces the process with gunicorn."""

import os
import re
import sys

import click

from tenantry.app.trial_build import find_build_problems
from tenantry.cli.output import count, examples
from tenantry.errors import Problem, TenantryError
from tenantry.server.listeners import Listener, SameListenerError, check_listeners
from tenantry.settings import HostSettings, environment_variable, read_settings
from tenantry.tenants.catalogue import Catalogue, check_tenant_exists, scan_tenants

GUNICORN_CONFIG = "python:tenantry.server.gunicorn_conf"

_BIND = re.compile(r"unix:.+|(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})")


def _check_bind(_: click.Context, __: click.Parameter, bind: str) -> str:
    match = _BIND.fullmatch(bind)
    if match is None:
        raise click.BadParameter(f"{bind!r}: write it like 127.0.0.1:8000 or unix:/run/t.sock.")
    if match[1] is not None and not 1 <= int(match[1]) <= 65535:  # noqa: PLR2004 - TCP
        raise click.BadParameter(f"{bind!r}: a port is 1 to 65535.")
    return bind


@click.command(
    "serve", epilog=examples("tenantry serve", "tenantry serve --bind 127.0.0.1:8080 --workers 4")
)
@click.option(
    "--bind", default="127.0.0.1:8000", show_default=True, callback=_check_bind, metavar="H:P",
    help="Address of the tenants' listener: HOST:PORT or unix:PATH.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N",
    help="Worker processes.  [default: one per processor, 2 to 8]",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N",
    help="Requests that each worker runs at once.  [default: 8]",
)  # fmt: skip
@click.option("--reload", "is_reloading", is_flag=True, help="Also restart when code changes.")
@click.option(
    "--only", multiple=True, metavar="NAME",
    help="Serve only this tenant; may be repeated.  [default: all]",
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

    `tenantry serve` prints each tenant's address and each problem, and runs gunicorn with
    Tenantry's configuration. Valid tenants start even if another tenant file is invalid. A changed
    tenant file takes effect within 2 s, without a restart.
    """
    if only:
        os.environ[environment_variable("only")] = ",".join(only)  # the workers read TENANTRY_ONLY
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
    """Replace the command's process with gunicorn, to free the memory of the command's imports."""
    sys.stdout.flush()
    # The option -P keeps the current folder from the front of sys.path.
    words = [sys.executable, "-P", "-m", "tenantry.server", *arguments]
    try:
        os.execv(sys.executable, words)  # noqa: S606 - the command needs no shell
    except OSError as error:
        raise TenantryError(f"cannot start {sys.executable}: {error.strerror}.") from error


def start_report(settings: HostSettings, catalogue: Catalogue, bind: str) -> list[str]:
    """Return a line for each tenant's address and for each problem."""
    origin = f"{bind}:" if bind.startswith("unix:") else f"http://{bind}"
    rows = [(tenant.name, f"{origin}{tenant.url_prefix}/") for tenant in catalogue.tenants]
    width = max((len(name) for name, _ in rows), default=0)
    problems = [*catalogue.problems, *_endpoint_problems(settings, catalogue)]
    lines = [f"{count(len(rows), 'tenant')} from {settings.tenants_dir}:"]
    lines += [f"  {name:<{width}}  {url}" for name, url in rows]
    lines += [f"rejected: {problem}" for problem in problems]
    lines += [f"disabled: {tenant.file}" for tenant in catalogue.disabled]
    if settings.admin_bind != "off":
        lines.append(f"for operators: http://{settings.admin_bind}/-/readyz")
    return lines


def _endpoint_problems(settings: HostSettings, catalogue: Catalogue) -> list[Problem]:
    found = find_build_problems(catalogue.tenants, settings.data_dir, only_endpoints=True)
    return [problem for _, problem in found]
