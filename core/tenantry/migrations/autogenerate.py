"""Compares an endpoint's models with a database, in the child process that `new_revision` starts.

No other module imports this module, because the models of an endpoint may run any code in their
process. The child process reads a request from stdin, and writes a reply to stdout, both in JSON.
"""

import ast
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from alembic.autogenerate import produce_migrations, render_python_code
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    Constraint,
    ForeignKeyConstraint,
    MetaData,
    NullPool,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
    create_engine,
)
from sqlalchemy.engine import make_url
from sqlalchemy.types import TypeDecorator

from tenantry.database.options import command_options
from tenantry.migrations.new_revision import AutogenerateReply, AutogenerateRequest
from tenantry.migrations.version_table import describe_error, with_connect_timeout
from tenantry.private_code.modules import PrivateModules
from tenantry.private_code.names import owner_of

NAME_BYTES = 63
"""Maximum length of a constraint's name in PostgreSQL."""

_DIALECTS = ("mysql", "postgresql", "sqlite")

_COLUMN = re.compile(rf"    (?:sa|{'|'.join(_DIALECTS)})\.")

_OWN_TYPE = (
    "a column has a type of your own, which Alembic cannot write into a migration; use a "
    "sqlalchemy.TypeDecorator, or write the migration by hand"
)


def main() -> None:
    """Answer the request from stdin, and exit."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what the models print must not become part of the reply
    request = AutogenerateRequest(**json.loads(sys.stdin.read()))
    try:
        reply = autogenerate(request)
    except BaseException as error:  # noqa: BLE001 - whatever models, drivers and Alembic raise
        reply = AutogenerateReply(problem=f"{describe_error(error)}{_place(error, request)}")
    os.write(answers, json.dumps(asdict(reply)).encode())
    os._exit(0)  # does not wait for threads and exit handlers of the models


def autogenerate(request: AutogenerateRequest) -> AutogenerateReply:
    """Return the code that brings the database to the models of the endpoint, and back."""
    modules = PrivateModules(request.tenant, None, [request.endpoint], request.app_dir)
    with modules.building():
        modules.load(f"{request.endpoint}.models")
    metadata = _metadata(modules, request.endpoint)
    if not metadata and not request.owned:
        return AutogenerateReply(problem="its models.py defines no table")
    url = with_connect_timeout(make_url(request.url))
    engine = create_engine(
        url, poolclass=NullPool, connect_args=command_options(url, request.options)
    )
    with engine.connect() as connection:
        own = {*request.owned, *(table for one in metadata for table in one.tables)}

        def is_own(name: str | None, kind: str, _: object) -> bool:
            return kind != "table" or name in own

        context = MigrationContext.configure(connection, opts={"include_name": is_own})
        upgrade = produce_migrations(context, metadata).upgrade_ops  # type: ignore[arg-type]
        if upgrade is None or upgrade.is_empty():
            return AutogenerateReply()
        _name_constraints(upgrade.ops)
        bodies = [_code(operations, context) for operations in (upgrade, upgrade.reverse())]
    code = "\n".join(bodies)
    imports = [name for name in _DIALECTS if re.search(rf"\b{name}\.[A-Z]", code)]
    return AutogenerateReply(upgrade=bodies[0], downgrade=bodies[1], dialects=imports)


def _metadata(modules: PrivateModules, package: str) -> list[MetaData]:
    """Return the collections of tables that the modules of a package name."""
    found: dict[int, MetaData] = {}
    for plain, module in modules.modules.items():
        if plain == package or plain.startswith(f"{package}."):
            for value in list(vars(module).values()):
                metadata = value
                if isinstance(value, type | Table):  # a mapped class, such as `Base`, or a table
                    metadata = getattr(value, "metadata", None)
                if isinstance(metadata, MetaData) and metadata.tables:
                    found[id(metadata)] = metadata
    return list(found.values())


def _name_constraints(operations: Sequence[ops.MigrateOperation]) -> None:
    """Give each constraint a name, because SQLite and Alembic can drop it only by its name."""
    for operation in operations:
        if isinstance(operation, ops.ModifyTableOps):
            _name_constraints(operation.ops)
        elif isinstance(operation, ops.CreateTableOp):
            for item in operation.columns:
                if isinstance(item, Constraint) and item.name is None:
                    item.name = _constraint_name(item, operation.table_name)
        elif isinstance(operation, ops.CreateForeignKeyOp):
            operation.constraint_name = operation.constraint_name or _name(
                "fk", operation.source_table, operation.local_cols
            )
        elif isinstance(operation, ops.CreateUniqueConstraintOp):
            operation.constraint_name = operation.constraint_name or _name(
                "uq", operation.table_name, list(map(str, operation.columns))
            )


def _constraint_name(constraint: Constraint, table: str) -> str | None:
    columns = [column.name for column in getattr(constraint, "columns", ())]
    match constraint:
        case PrimaryKeyConstraint():
            return _name("pk", table, [])
        case ForeignKeyConstraint():
            return _name("fk", table, columns)
        case UniqueConstraint():
            return _name("uq", table, columns)
    return None


def _name(kind: str, table: str, columns: Sequence[str]) -> str:
    return "_".join([kind, table, *columns])[:NAME_BYTES]


def _code(operations: ops.UpgradeOps | ops.DowngradeOps, context: MigrationContext) -> str:
    """Return the body of a function that performs operations.

    Batch operations work on every engine, and SQLite needs them.

    Raises:
        ValueError: a column has a type that cannot be written as code.
    """
    code = render_python_code(
        operations, render_as_batch=True, render_item=_render_type, migration_context=context
    )
    lines = [line for line in code.splitlines() if not line.strip().startswith("# ###")]
    # Alembic does not indent the columns of a new table.
    lines = [f"    {line}" if _COLUMN.match(line) else line.rstrip() for line in lines]
    body = "\n".join(lines).strip("\n")
    try:
        ast.parse(f"def _():\n    {body.lstrip()}")
    except SyntaxError:
        raise ValueError(_OWN_TYPE) from None
    return f"    {body.lstrip()}"


def _render_type(kind: str, item: Any, _: object) -> str | Literal[False]:
    """Return the code of a type that the endpoint defines, so that a migration never imports it."""
    if kind != "type" or not isinstance(item, TypeDecorator) or not owner_of(type(item).__module__):
        return False
    return f"sa.{item.impl_instance!r}"


def _place(error: BaseException, request: AutogenerateRequest) -> str:
    """Return the innermost line of the endpoint's code in a traceback, or an empty string."""
    return next(_places(error, Path(request.folder)), "")


def _places(error: BaseException, folder: Path) -> Iterator[str]:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(folder):
            yield f" ({path.relative_to(folder)}:{frame.lineno})"
