"""Writes the package of a new endpoint, with a test, for `tenantry endpoint new`."""

import keyword
import os
import re
import shutil
import sys
from pathlib import Path
from string import Template
from tempfile import mkdtemp

from tenantry.endpoints.finding import available_endpoints
from tenantry.errors import TenantryError
from tenantry.private_code.search import find_module

NAME_CHARS = 27
"""Maximum length of an endpoint's name. A revision ID, such as `notes_0001`, begins with the name,
and PostgreSQL stores at most 32 characters of an ID."""

_NAME = re.compile(rf"[a-z][a-z0-9_]{{0,{NAME_CHARS - 1}}}")

_BLUEPRINT = '''\
"""Maps the resources of the endpoint $name to URLs."""

from flask import Blueprint
from flask_restful import Api

from .resources import $title

${name}_bp = Blueprint("$name", __name__)
${name}_api = Api(${name}_bp)

${name}_api.add_resource($title, "/$name/")
'''

_RESOURCES = '''\
"""Defines the HTTP resources of the endpoint $name."""

from flask_restful import Resource
from tenantry import current_tenant

from .models import ${title}Model


class $title(Resource):
    """The resource at `/$name/`."""

    def get(self) -> dict[str, str]:
        """Return a greeting."""
        return ${title}Model(current_tenant.app_name).greeting()
'''

_MODELS = '''\
"""Contains the logic of the endpoint $name, without Flask."""


class ${title}Model:
    """What the endpoint tells the visitors of a tenant."""

    def __init__(self, owner: str) -> None:
        """Create the model for the tenant with the display name `owner`."""
        self.owner = owner

    def greeting(self) -> dict[str, str]:
        """Return a greeting."""
        return {"hello": "$name", "owner": self.owner}
'''

_TEST = '''\
"""Tests the endpoint $name."""

import pytest
from flask.testing import FlaskClient

pytestmark = pytest.mark.tenant(APP_NAME="Acme Ltd", BLUEPRINTS=["$name"])


def test_${name}_greets(client: FlaskClient) -> None:
    """`GET /$name/` returns a greeting of the tenant."""
    response = client.get("/$name/")

    assert response.status_code == 200
    assert response.json == {"hello": "$name", "owner": "Acme Ltd"}
'''

_FILES = {
    "__init__.py": "",
    "blueprint.py": _BLUEPRINT,
    "resources.py": _RESOURCES,
    "models.py": _MODELS,
    "test_$name.py": _TEST,
}
"""The files of an endpoint. `$name` stands for its name, and `$title` for the name of a class."""


def check_endpoint_name(name: str) -> str:
    """Return the name of a new endpoint.

    Raises:
        ValueError: no new endpoint can have this name. The message says why.
    """
    if "." in name:
        raise ValueError(
            "expected a name without dots; an endpoint that you move into a package later is named "
            "by its import name, like 'shop.notes'"
        )
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"an endpoint's name has 1 to {NAME_CHARS} characters of a-z, 0-9 and _, and begins "
            "with a letter, like 'price_list'"
        )
    if keyword.iskeyword(name):
        raise ValueError("this is a keyword of Python; choose another name")
    if name in sys.stdlib_module_names:
        raise ValueError("Python has a module of this name; choose another name")
    if name in available_endpoints():
        raise ValueError("an endpoint with this name comes with Tenantry; choose another name")
    return name


def create_endpoint(name: str, app_dir: Path, reserved: tuple[Path, ...] = ()) -> Path:
    """Write the package of an endpoint completely or not at all, and return its folder.

    Args:
        name: a valid name.
        app_dir: the folder that contains the package.
        reserved: folders of the host that cannot be packages.

    Raises:
        TenantryError: the package, or a library with this name, already exists, or the folder is
            not writable.
    """
    package = app_dir / name
    for path in (package, app_dir / f"{name}.py"):
        if os.path.lexists(path):
            raise TenantryError(f"{path} exists, and is never overwritten; choose another name.")
    if package in {path.absolute() for path in reserved}:
        raise TenantryError(f"{package} is a folder of the host; choose another name.")
    if found := find_module(name, None):
        place = found.origin or "the import path"
        raise TenantryError(f"a library is named {name!r} ({place}); choose another name.")
    try:
        _write(name, package)
    except OSError as error:
        raise TenantryError(f"cannot write {package}: {error.strerror}.") from error
    return package


def _write(name: str, package: Path) -> None:
    unfinished = Path(mkdtemp(prefix=f".{name}.", dir=package.parent))
    values = {"name": name, "title": name.title().replace("_", "")}
    try:
        for file, text in _FILES.items():
            path = unfinished / Template(file).substitute(values)
            path.write_text(Template(text).substitute(values), encoding="utf-8")
            path.chmod(0o644)  # the host can run as a different user than this command
        unfinished.chmod(0o755)
        unfinished.rename(package)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
