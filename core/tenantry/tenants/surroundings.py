"""Finds risks for tenants outside their files, for `tenantry check`.

Other users of the machine can change code that the host executes, or read data. Environment
variables can change the configuration of every app. The host serves tenants with such risks, unless
every user can change their code.
"""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tenantry.database.url import plain_file
from tenantry.endpoints.app_migrations import migrations_paths
from tenantry.endpoints.app_reference import app_paths, parse_app
from tenantry.endpoints.finding import code_paths
from tenantry.errors import Problem
from tenantry.files.permissions import OTHERS, describe_writers, find_open, is_replaceable
from tenantry.tenants.file import display_path
from tenantry.tenants.model import Tenant

_SHOWN_PATHS = 3

_NOT_KEYS = ("FLASK_APP", "FLASK_DEBUG", "FLASK_SKIP_DOTENV", "FLASK_RUN_")
"""Environment variables that Flask itself reads. Most of them affect only Flask's own commands."""

_DEBUG_IS_OFF = frozenset({"", "0", "false", "no"})
"""Values of `FLASK_DEBUG` that leave debugging off, in lower case."""


def find_debug_switch(environ: Mapping[str, str] = os.environ) -> Iterator[Problem]:
    """Yield a problem if `FLASK_DEBUG` asks for debugging in every app."""
    if environ.get("FLASK_DEBUG", "").lower() not in _DEBUG_IS_OFF:
        text = (
            "asks for debugging in every app, which the host does not do; unset it. "
            "For development: tenantry run NAME -- run --debug"
        )
        yield Problem("environment", text, "FLASK_DEBUG")


def find_shared_variables(environ: Mapping[str, str] = os.environ) -> Iterator[Problem]:
    """Yield a note for each environment variable that an app can read as configuration."""
    for name in sorted(environ):
        if name.startswith("FLASK_") and not name.startswith(_NOT_KEYS):
            text = (
                "changes every app that calls 'config.from_prefixed_env()'; unset it, and set the "
                "key in the tenant files."
            )
            yield Problem("environment", text, name)


def find_writers(tenants: Sequence[Tenant], tenants_dir: Path) -> Iterator[tuple[str, Problem]]:
    """Yield a note, with a tenant's name, for code that users except this user and root can change.

    A note about the tenants folder has no tenant's name.
    """
    for folder in tenants_dir.absolute().parents:
        if is_replaceable(folder):
            text = "every user can replace what is in this folder, the tenants folder included"
            yield "", Problem(display_path(folder), f"{text}; run: {_chmod('o-w', folder)}")
    owners = {tenants_dir: ""}
    endpoints: set[tuple[str, str]] = set()  # what a name means depends on the APP_DIR
    for tenant in tenants:
        owners.setdefault(Path(tenant.file), tenant.name)
        for endpoint in {(name, tenant.app_dir) for name in tenant.blueprints} - endpoints:
            endpoints.add(endpoint)
            owners |= dict.fromkeys(set(code_paths(*endpoint)) - owners.keys(), tenant.name)
        if tenant.app is not None and (tenant.app, tenant.app_dir) not in endpoints:
            endpoints.add((tenant.app, tenant.app_dir))
            for path in _code_of_app(tenant, tenant.app):
                owners.setdefault(path, tenant.name)
    for path, owner in owners.items():
        if writers := describe_writers(path):
            text = f"{writers} can change this code, which the host runs"
            yield owner, Problem(display_path(path), f"{text}; run: {_own(path)}")


def _code_of_app(tenant: Tenant, app: str) -> list[Path]:
    paths = app_paths(parse_app(app), tenant.app_dir)
    if tenant.migrations is not None:
        paths += migrations_paths(Path(tenant.migrations))
    return paths


def find_open_data(tenants: Sequence[Tenant], data_dir: Path) -> Iterator[tuple[str, Problem]]:
    """Yield a note for each folder in the data folder that other users can access.

    A note about a tenant's data has the tenant's name.
    """
    if writers := describe_writers(data_dir, with_others=True):
        text = f"{writers} can replace the data in this folder; run: {_own(data_dir)}"
        yield "", Problem(display_path(data_dir), text)
    names = {tenant.name for tenant in tenants}
    own = {child.name for child in data_dir.glob(".*")} | {"secrets"}
    for name in sorted(own | names):
        yield from _open_folder(data_dir / name, name if name in names else "")
    for tenant in tenants:
        file = plain_file(tenant.database_uri.get_secret_value())
        if file and file.parent != data_dir.absolute() / tenant.name and _is_open(file):
            yield tenant.name, _note(file, "", _chmod("go=", file))


def _open_folder(folder: Path, owner: str) -> Iterator[tuple[str, Problem]]:
    found = find_open(folder) if folder.is_dir() else ["."] if _is_open(folder) else []
    if found:
        shown = ", ".join(name for name in found[:_SHOWN_PATHS] if name != ".")
        more = f", and {len(found) - _SHOWN_PATHS} more" if len(found) > _SHOWN_PATHS else ""
        command = _chmod("-R go=", folder)
        yield owner, _note(folder, f" ({shown}{more})" if shown else "", command)


def _is_open(file: Path) -> bool:
    try:
        return bool(file.stat().st_mode & OTHERS)
    except OSError:  # the host has not created the file yet
        return False


def _own(path: Path) -> str:
    """Return the command that makes this user the only one that can change a file or folder."""
    if path.stat().st_uid not in {0, os.geteuid()}:
        return f"chown {os.geteuid()} {_quoted(path)} && {_chmod('go-w', path)}"
    return _chmod("go-w", path)


def _chmod(mode: str, path: Path) -> str:
    return f"chmod {mode} {_quoted(path)}"


def _quoted(path: Path) -> str:
    return shlex.quote(display_path(path))


def _note(path: Path, what: str, command: str) -> Problem:
    return Problem(display_path(path), f"other users can access this data{what}; run: {command}")
