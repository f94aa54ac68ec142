"""Runs the migrations of an existing application with the `env.py` of its folder `MIGRATIONS`.

An `env.py` connects to the database in its own way, and may need the app: Flask-Migrate's reads
`current_app.extensions["migrate"]`. Therefore, it runs in an app context of the tenant, and its
imports mean the tenant's own modules. Only `process_child` uses this module, in a process that ends
after the migrations of one tenant.
"""

import importlib.util
import logging.config
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import alembic.util.pyfiles
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import ScriptDirectory
from flask import Flask

from tenantry import tenant as tenant_context
from tenantry.database.url import database_identity
from tenantry.endpoints.plain_names import modules_of

VERSION_TABLE = "alembic_version"

Steps = Callable[[ScriptDirectory], Sequence[RevisionStep]]
"""A function that returns the migrations to run, in their order."""


class AppMigrationError(Exception):
    """The `env.py` of an application does not do what `tenantry db` needs."""


def run_app_migrations(tenant: str, folder: Path, url: str, steps: Steps) -> None:
    """Run migrations of an application with its own `env.py`, in an app context of its tenant.

    Args:
        tenant: the tenant's name.
        folder: the folder `MIGRATIONS`.
        url: the URL of the database, which must be the tenant's.
        steps: returns the migrations to run.

    Raises:
        AppMigrationError: `env.py` uses another database or version table, or runs no migrations.
        BaseException: the exception of the application, of `env.py` or of a migration.
    """
    with tenant_context(tenant) as app:
        if app.config["SQLALCHEMY_DATABASE_URI"] != url:
            raise AppMigrationError("the tenant file has changed meanwhile; try again")
        config = _config(app, folder, url)
        with _imports_of(app), _kept_logging():
            # `ScriptDirectory.from_config` would put folders first on `sys.path`.
            script = ScriptDirectory(folder, version_locations=[folder / "versions"])
            _run_env(config, script, url, steps(script))


def _run_env(
    config: Config, script: ScriptDirectory, url: str, steps: Sequence[RevisionStep]
) -> None:
    contexts: list[MigrationContext] = []

    def migrate(_: object, context: MigrationContext) -> Sequence[RevisionStep]:
        _check_context(context, url)
        contexts.append(context)
        return steps

    with EnvironmentContext(config, script, fn=migrate):
        script.run_env()
    if not contexts:
        raise AppMigrationError("its env.py does not call context.run_migrations()")


def _check_context(context: MigrationContext, url: str) -> None:
    """Raise an error if a migration would change something else than the tenant's database."""
    table = (context.version_table, context.version_table_schema)
    if table != (VERSION_TABLE, None):
        name = ".".join(filter(None, reversed(table)))
        raise AppMigrationError(
            f"its env.py uses the version table {name}; tenantry db needs {VERSION_TABLE}"
        )
    found = None if context.connection is None else context.connection.engine.url
    text = "" if found is None else found.render_as_string(hide_password=False)
    if found is None or database_identity(text) != database_identity(url):
        raise AppMigrationError(
            f"its env.py connects to {found!r}, which is not the tenant's database; take the URL "
            "from config.get_main_option('sqlalchemy.url') or from the app's configuration"
        )


def _config(app: Flask, folder: Path, url: str) -> Config:
    """Return the configuration in `alembic.ini`, with the tenant's database.

    Flask-Migrate also calls the application's functions under `@migrate.configure`.
    """
    migrate = getattr(app.extensions.get("migrate"), "migrate", None)
    if migrate is not None:
        config: Config = migrate.get_config(directory=str(folder))
    else:
        files = [folder / "alembic.ini", folder.parent / "alembic.ini"]
        config = Config(next((str(file) for file in files if file.is_file()), None))
    config.set_main_option("script_location", _escaped(str(folder)))
    config.set_main_option("sqlalchemy.url", _escaped(url))
    return config


def _escaped(value: str) -> str:
    return value.replace("%", "%%")  # the values of alembic.ini are templates


@contextmanager
def _imports_of(app: Flask) -> Iterator[None]:
    """Let imports in `env.py` and in revision files mean the modules of the tenant's app."""
    modules = modules_of(app)
    original = alembic.util.pyfiles.load_module_py

    def load(module_id: str, path: str | os.PathLike[str]) -> ModuleType:
        spec = importlib.util.spec_from_file_location(module_id, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"cannot import {path}")
        module = importlib.util.module_from_spec(spec)
        if modules is not None:
            module.__dict__["__builtins__"] = modules.builtins
        spec.loader.exec_module(module)
        return module

    alembic.util.pyfiles.load_module_py = load
    try:
        yield
    finally:
        alembic.util.pyfiles.load_module_py = original


@contextmanager
def _kept_logging() -> Iterator[None]:
    """Ignore `fileConfig` in `env.py`, which would disable loggers and print a line per step."""
    original = logging.config.fileConfig
    logging.config.fileConfig = _ignore_file_config
    try:
        yield
    finally:
        logging.config.fileConfig = original


def _ignore_file_config(*_: Any, **__: Any) -> None:
    """Ignore a call of `fileConfig`."""
