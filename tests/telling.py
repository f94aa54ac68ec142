"""Tenants that say who they are: what live tests and benchmarks serve."""

from pathlib import Path

ENDPOINT = """\
import os, time
from pathlib import Path
from flask import Blueprint, Response, current_app, stream_with_context

teller_bp = Blueprint("teller", __name__)


def told():
    config = current_app.config
    return f"{config['APP_NAME']} {config['VERSION']} {config['CHECK']} {os.getpid()}"


@teller_bp.route("/")
def tell():
    return told()


@teller_bp.route("/until/<gate>")
def tell_twice(gate):
    def parts():
        yield told() + "\\n"
        for _ in range(1000):
            if Path(gate).exists():
                break
            time.sleep(0.01)
        yield told() + "\\n"
    return Response(stream_with_context(parts()))
"""
"""Answers `acme 7 7 4711`: the tenant, its version twice (first and last line of its file), pid;
at `/until/<gate>` that line twice, the second when the file `<gate>` is there."""


def make_site(folder: Path, *names: str) -> Path:
    """Make the endpoint's package and a tenants folder, which is returned; tenants in version 0."""
    package = folder / "said/teller"
    package.mkdir(parents=True)
    for init in (folder / "said/__init__.py", package / "__init__.py"):
        init.write_text("")
    (package / "blueprint.py").write_text(ENDPOINT)
    tenants = folder / "tenants"
    tenants.mkdir()
    for name in names:
        (tenants / f"{name}.py").write_text(teller_text(name, 0))
    return tenants


def teller_text(name: str, version: object) -> str:
    """Return the file of a tenant that tells; its version is the first line, and the last."""
    return (
        f"VERSION = {version!r}\nAPP_NAME = {name!r}\nSECRET_KEY = {name + '-' * 32!r}\n"
        f"BLUEPRINTS = ['said.teller']\nCHECK = {version!r}\n"
    )
