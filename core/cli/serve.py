"""`tenantry serve`: says what will be served, then becomes gunicorn."""

import os
import re
import socket
import sys
from pathlib import Path

import click

import config
from config.settings import HostSettings, read_settings
from core.catalogue import Catalogue
from core.cli.tenants import scan
from core.endpoints import try_endpoint
from core.errors import EndpointError, Problem, TenantryError

CONFIG_FILE = Path(config.__file__).with_name("gunicorn.conf.py")


def _check_bind(_: click.Context, __: click.Parameter, bind: str) -> str:
    if not re.fullmatch(r"(unix:.+|(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):\d{1,5})", bind):
        raise click.BadParameter(f"{bind!r}: write it like 127.0.0.1:8000 or unix:/run/t.sock.")
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
def command(bind: str, workers: int | None, threads: int | None, is_reloading: bool) -> None:
    """Serve all tenants with gunicorn; a broken tenant file never stops the start."""
    settings = read_settings()
    catalogue = scan(settings)
    listeners = [bind] if settings.admin_bind == "off" else [bind, settings.admin_bind]
    for listener in listeners:
        _check_free(listener)
    for line in start_report(settings, catalogue, bind):
        click.echo(line)
    arguments = ["-c", str(CONFIG_FILE)]
    for listener in listeners:
        arguments += ["--bind", listener]
    arguments += ["--workers", str(workers)] if workers else []
    arguments += ["--threads", str(threads)] if threads else []
    arguments += ["--reload"] if is_reloading else []
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", *arguments])  # noqa: S606 - becomes it


def start_report(settings: HostSettings, catalogue: Catalogue, bind: str) -> list[str]:
    """Return the lines that tell what is served where, and every rejected file with its reasons."""
    origin = f"{bind}:" if bind.startswith("unix:") else f"http://{bind}"
    failing = endpoint_problems(catalogue)
    rows = [(tenant.name, f"{origin}{tenant.url_prefix}/") for tenant in catalogue.tenants]
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"{len(rows)} tenants from {settings.tenants_dir}:"]
    lines += [f"  {name:<{width}}  {url}" for name, url in rows]
    lines += [f"rejected: {problem}" for problem in (*catalogue.problems, *failing)]
    lines += [f"disabled: {tenant.file}" for tenant in catalogue.disabled]
    if settings.admin_bind != "off":
        lines.append(f"for operators: http://{settings.admin_bind}/-/readyz")
    return lines


def endpoint_problems(catalogue: Catalogue) -> list[Problem]:
    """Try every enabled endpoint once; return a problem for each tenant that enables a bad one."""
    enabled = {name for tenant in catalogue.tenants for name in tenant.blueprints}
    failing: dict[str, str] = {}
    for name in sorted(enabled):
        try:
            try_endpoint(name)
        except EndpointError as error:
            failing[name] = str(error)
    return [
        Problem(tenant.file, failing[name], f"BLUEPRINTS[{place}]")
        for tenant in catalogue.tenants
        for place, name in enumerate(tenant.blueprints)
        if name in failing
    ]


def _check_free(bind: str) -> None:
    """Refuse a taken port now, in one line; gunicorn would try for five seconds."""
    if bind.startswith("unix:"):
        return
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise TenantryError(
                f"cannot listen on {bind}: {reason}; name another with --bind, "
                "or with TENANTRY_ADMIN_BIND for the operators' pages (`off`: none)."
            ) from error
