"""`tenantry serve`: says what will be served, then becomes gunicorn."""

import os
import re
import sys

import click

from tenantry.app.trial_build import find_faults
from tenantry.cli.output import counted
from tenantry.errors import Problem
from tenantry.server.listeners import Listener, check_listeners
from tenantry.settings import HostSettings, environment_variable, read_settings
from tenantry.tenants.catalogue import Catalogue
from tenantry.tenants.lookup import check_tenant_exists, scan

GUNICORN_CONFIG = "python:tenantry.server.gunicorn_conf"

_BIND = re.compile(r"unix:.+|(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})")


def _check_bind(_: click.Context, __: click.Parameter, bind: str) -> str:
    match = _BIND.fullmatch(bind)
    if match is None:
        raise click.BadParameter(f"{bind!r}: write it like 127.0.0.1:8000 or unix:/run/t.sock.")
    if match[1] is not None and not 1 <= int(match[1]) <= 65535:  # noqa: PLR2004 - TCP
        raise click.BadParameter(f"{bind!r}: a port is 1 to 65535.")
    return bind


@click.command("serve")
@click.option(
    "--bind",
    default="127.0.0.1:8000",
    show_default=True,
    callback=_check_bind,
    metavar="H:P",
    help="Where the tenants are served.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each worker.")
@click.option("--reload", "is_reloading", is_flag=True, help="Restart on a change of code, too.")
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Serve this tenant and no other, in a host of its own; may be given again.",
)
def command(
    bind: str,
    workers: int | None,
    threads: int | None,
    is_reloading: bool,
    only: tuple[str, ...],
) -> None:
    """Serve all tenants with gunicorn; a broken tenant file never stops the start."""
    if only:
        os.environ[environment_variable("only")] = ",".join(only)  # for gunicorn's workers too
    settings = read_settings()
    for name in settings.only:
        check_tenant_exists(settings, name)
    catalogue = scan(settings)
    listeners = [Listener("--bind", bind)]
    if settings.admin_bind != "off":
        listeners.append(Listener(environment_variable("admin_bind"), settings.admin_bind))
    check_listeners(listeners)
    for line in start_report(settings, catalogue, bind):
        click.echo(line)
    arguments = ["-c", GUNICORN_CONFIG]
    for listener in listeners:
        arguments += ["--bind", listener.bind]
    arguments += ["--workers", str(workers)] if workers else []
    arguments += ["--threads", str(threads)] if threads else []
    arguments += ["--reload"] if is_reloading else []
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "tenantry.server", *arguments])  # noqa: S606 - becomes it


def start_report(settings: HostSettings, catalogue: Catalogue, bind: str) -> list[str]:
    """Return the lines that tell what is served where, and every rejected file with its reasons."""
    origin = f"{bind}:" if bind.startswith("unix:") else f"http://{bind}"
    failing = endpoint_problems(settings, catalogue)
    rows = [(tenant.name, f"{origin}{tenant.url_prefix}/") for tenant in catalogue.tenants]
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"{counted(len(rows))} from {settings.tenants_dir}:"]
    lines += [f"  {name:<{width}}  {url}" for name, url in rows]
    lines += [f"rejected: {problem}" for problem in (*catalogue.problems, *failing)]
    lines += [f"disabled: {one.file}" for one in catalogue.disabled]
    if settings.admin_bind != "off":
        lines.append(f"for operators: http://{settings.admin_bind}/-/readyz")
    return lines


def endpoint_problems(settings: HostSettings, catalogue: Catalogue) -> list[Problem]:
    """Try every enabled endpoint; return a problem for each tenant that enables a bad one."""
    faults = find_faults(catalogue.tenants, settings.data_dir, only_endpoints=True)
    return [problem for _, problem in faults]
