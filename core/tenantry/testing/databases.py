"""The databases of tests: copies of template databases, which are migrated once per session."""

import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from tenantry.database.url import parse_database_url
from tenantry.errors import TenantryError
from tenantry.migrations.revisions import Branch
from tenantry.migrations.runner import MigrationRunner, MigrationTarget

if TYPE_CHECKING:
    from sqlalchemy import Engine

Branches = tuple[Branch, ...]


class TemplateDatabases:
    """Migrated databases, which `copy_file` and `copy_on_server` copy for each test.

    `close` ends the migration process, and drops the templates on the PostgreSQL server.

    Args:
        folder: an empty folder for SQLite templates.
        server: the URL of a PostgreSQL server for tests, or None.

    Raises:
        TenantryError: the URL is invalid.
    """

    def __init__(self, folder: Path, server: str | None) -> None:
        self._folder = folder
        self._closing = ExitStack()
        self._runner = self._closing.enter_context(MigrationRunner())
        self._files: dict[Branches, Path] = {}
        self._server = None if server is None else _Server(server)
        self._on_server: dict[Branches, str] = {}

    def copy_file(self, branches: Branches, path: Path) -> None:
        """Create a migrated SQLite database, unless there are no tables."""
        if not branches:
            return
        if branches not in self._files:
            template = self._folder / f"template-{len(self._files)}.sqlite3"
            self._migrate(branches, f"sqlite:///{template}", template.with_suffix(".lock"))
            self._files[branches] = template
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(self._files[branches], path)

    def copy_on_server(self, branches: Branches) -> str:
        """Create a migrated database on the PostgreSQL server, and return its URL.

        Raises:
            TenantryError: no server for tests is known.
        """
        if self._server is None:
            raise TenantryError(
                "this tenant uses PostgreSQL; run pytest with a server for tests: pytest "
                "--tenantry-postgres postgresql+psycopg://USER@HOST/postgres. Or test with SQLite: "
                '@pytest.mark.tenant("NAME", DATABASE_URI=None)'
            )
        if branches not in self._on_server:
            template = self._server.create()
            if branches:
                lock = self._folder / f"{template}.lock"
                self._migrate(branches, self._server.url(template), lock)
            self._on_server[branches] = template
        return self._server.url(self._server.create(self._on_server[branches]))

    def drop(self, urls: Sequence[str]) -> None:
        """Drop databases of `copy_on_server`."""
        if self._server is not None:
            for url in urls:
                self._server.drop(str(parse_database_url(url).database))

    def close(self) -> None:
        """Drop all templates, and end the migration process. Idempotent."""
        self._closing.close()
        self._files.clear()
        if self._server is not None:
            while self._on_server:
                self._server.drop(self._on_server.popitem()[1])
            self._server.close()

    def _migrate(self, branches: Branches, url: str, lock_file: Path) -> None:
        result = self._runner.upgrade(MigrationTarget("acme", url, branches, lock_file))
        if result.state != "migrated":
            raise TenantryError(f"the migrations of the tenant's endpoints fail: {result.reason}")


def skip_fsync(engine: "Engine") -> None:
    """Let commits to a SQLite file not wait for the disk, which takes longer than the test itself.

    Only a crash of the machine can lose a commit, and a test does not survive that either.
    """
    from sqlalchemy import event  # noqa: PLC0415 - takes 0.3 s

    event.listen(engine, "connect", lambda one, _: one.execute("PRAGMA synchronous = OFF").close())


class _Server:
    """A PostgreSQL server on which tests create databases. `close` closes the connection."""

    def __init__(self, url: str) -> None:
        from sqlalchemy import NullPool, create_engine  # noqa: PLC0415 - takes 0.3 s

        try:
            self._url = parse_database_url(url)
        except ValueError as error:
            raise TenantryError(f"--tenantry-postgres: {error}.") from None
        if self._url.get_backend_name() != "postgresql":
            raise TenantryError("--tenantry-postgres: expected postgresql+psycopg://…")
        self._engine: Engine = create_engine(
            self._url, poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        # Several processes (pytest-xdist) and several runs can share the server.
        self._prefix = f"tenantry_test_{os.getpid()}_{secrets.token_hex(4)}"
        self._numbers = count(1)

    def url(self, database: str) -> str:
        """Return the URL of a database, with the password."""
        return self._url.set(database=database).render_as_string(hide_password=False)

    def create(self, template: str = "template1") -> str:
        """Create a database, and return its name."""
        name = f"{self._prefix}_{next(self._numbers)}"
        self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
        return name

    def drop(self, database: str) -> None:
        """Drop a database, even if a test has left a connection open."""
        self._run(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def close(self) -> None:
        """Close the connections to the server."""
        self._engine.dispose()

    def _run(self, statement: str) -> None:
        with self._engine.connect() as connection:
            connection.exec_driver_sql(statement)
