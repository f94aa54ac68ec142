"""Creates tenants that answer with their name and version, for live tests and benchmarks."""

from pathlib import Path

ENDPOINT = """\
import os, time
from pathlib import Path
from flask import Blueprint, Response, current_app, stream_with_context

version_bp = Blueprint("version", __name__)


def line():
    config = current_app.config
    return f"{config['APP_NAME']} {config['VERSION']} {config['CHECK']} {os.getpid()}"


@version_bp.route("/")
def once():
    return line()


@version_bp.route("/until/<path>")
def twice(path):
    def parts():
        yield line() + "\\n"
        for _ in range(1000):
            if Path(path).exists():
                break
            time.sleep(0.01)
        yield line() + "\\n"
    return Response(stream_with_context(parts()))
"""
"""An endpoint that returns, for example, `acme 7 7 4711`.

The response contains the tenant's name, the versions in the first and last lines of the tenant
file, and the process ID. `/until/<path>` returns this text twice, and waits before the second time
until the file `<path>` exists.
"""


def make_site(folder: Path, *names: str) -> Path:
    """Create the endpoint and the tenants of version 0. Return the tenants folder."""
    package = folder / "sites/version"
    package.mkdir(parents=True)
    for init in (folder / "sites/__init__.py", package / "__init__.py"):
        init.write_text("")
    (package / "blueprint.py").write_text(ENDPOINT)
    tenants = folder / "tenants"
    tenants.mkdir()
    for name in names:
        (tenants / f"{name}.py").write_text(versioned_tenant_text(name, 0))
    return tenants


def versioned_tenant_text(name: str, version: object) -> str:
    """Return a tenant file that contains the version in its first and last lines."""
    return (
        f"VERSION = {version!r}\nAPP_NAME = {name!r}\nSECRET_KEY = {name + '-' * 32!r}\n"
        f"BLUEPRINTS = ['sites.version']\nCHECK = {version!r}\n"
    )
