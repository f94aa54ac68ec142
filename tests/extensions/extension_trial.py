"""Tries one extension with two tenants.

The command `python extension_trial.py NAME` prints what went wrong, as JSON.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from extension_cases import CASES, Case
from flask import Flask
from werkzeug.test import Client

from tenantry.app.factory import close_app, create_app
from tenantry.cli.audit import audit_folder
from tenantry.settings import HostSettings

TENANTS = ("acme", "globex")

BLUEPRINT = """\
from flask import Blueprint
shop_bp = Blueprint("shop", __name__)
"""


def try_extension(case: Case) -> list[str]:
    """Return what went wrong: answers that are not as expected, and findings of the audit."""
    with TemporaryDirectory() as folder, _code(case, Path(folder)):
        findings = _findings(case, Path(folder))
        with _apps(case, Path(folder)) as apps:
            return [*_wrong_answers(case, apps), *findings]


def _wrong_answers(case: Case, apps: list[Flask]) -> Iterator[str]:
    clients = {name: Client(app) for name, app in zip(TENANTS, apps, strict=True)}
    for step, expected in case.steps:
        for name, client in clients.items():
            path = step.format(name=name)
            url = f"http://localhost/{name}"  # a session cookie belongs to the tenant's prefix
            headers = {"Authorization": "Bearer token"}
            answer = client.get(path, base_url=url, headers=headers)
            text = f"{answer.text} {answer.headers.get('Location', '')}"
            if expected.format(name=name) not in text:
                yield f"{name}{path}: {answer.status_code}: {text[:100]!r}"
            elif any(other in text for other in clients.keys() - {name}):
                yield f"{name}{path} contains another tenant: {text[:100]!r}"


def _findings(case: Case, folder: Path) -> list[str]:
    tenants = folder / "tenants"
    tenants.mkdir()
    for name in TENANTS:
        lines = [f"{key} = {value!r}\n" for key, value in _keys(case, name).items()]
        (tenants / f"{name}.py").write_text("".join(lines), encoding="utf-8")
    findings = audit_folder(HostSettings(tenants_dir=tenants, data_dir=folder / "data"))[0]
    return [f"audit: {one.id}" for one in findings if one.is_problem]


@contextmanager
def _apps(case: Case, folder: Path) -> Iterator[list[Flask]]:
    apps: list[Flask] = []
    try:
        for name in TENANTS:
            app = create_app(_keys(case, name), data_dir=folder / "data")
            apps.append(app)
        yield apps
    finally:
        for app in apps:
            close_app(app)


@contextmanager
def _code(case: Case, folder: Path) -> Iterator[None]:
    package = folder / "corp/shop"
    package.mkdir(parents=True)
    for file in (package.parent / "__init__.py", package / "__init__.py"):
        file.touch()
    (package / "blueprint.py").write_text(BLUEPRINT + case.code, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.path_importer_cache.clear()
        sys.modules.pop("corp", None)


def _keys(case: Case, name: str) -> dict[str, Any]:
    own = {"APP_NAME": name, "SECRET_KEY": f"{name}-0123456789abcdef0123456789abcdef"}
    return own | {"BLUEPRINTS": ["corp.shop"]} | _with_name(case.keys, name)


def _with_name(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _with_name(item, name) for key, item in value.items()}
    return value.format(name=name) if isinstance(value, str) else value


if __name__ == "__main__":
    print(json.dumps(try_extension(CASES[sys.argv[1]])))
