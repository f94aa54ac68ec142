"""Predicts, from migrations on SQLite, which tables PostgreSQL would refuse.

`tenantry check` runs the migrations on a temporary SQLite database. For each statement that defines
a table, an index or a column, this module makes the statement that PostgreSQL would receive, and
checks the statement against the rules of PostgreSQL. In a statement that a migration contains as
text, only the length of names is checked. Only the child process of a migration imports this
module.
"""

import re
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.ddl import CreateIndex, CreateTable, DropIndex, DropTable, ExecutableDDLElement

from tenantry.migrations.version_table import describe_error

NAME_BYTES = 63
"""Maximum length in bytes of a name in PostgreSQL, which cuts off longer names without an error."""

_BATCH_TABLE = "_alembic_tmp_"
"""Prefix of the name of a temporary table that Alembic creates to change a table in SQLite."""

_QUOTE = '"'

_TEXT = re.compile(r"'(?:[^']|'')*'|--[^\n]*")
_NAME = re.compile(r'"((?:[^"]|"")+)"|\b([^\W\d]\w*)')
_BOOLEAN_NUMBER = re.compile(r'(\w+|"[^"]+") BOOLEAN\b[^,]*? DEFAULT \(?([01])\b', re.IGNORECASE)


class PostgresForesight:
    """Collects what PostgreSQL would refuse in the statements of one run of migrations."""

    def __init__(self, connection: sa.Connection) -> None:
        self.refusals: list[str] = []
        """The reasons why PostgreSQL would refuse a statement, each as a clause without a
        period."""
        self._dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
        self._relations: dict[str, str] = {}  # maps a table, key or index to its table
        self._types: set[str] = set()  # names of the types of `Enum` columns
        sa.event.listen(connection, "before_execute", self._note)

    def _note(self, _: sa.Connection, statement: Executable, *_args: Any) -> None:
        if isinstance(statement, sa.TextClause):
            self._check_names(statement.text)
        elif isinstance(statement, ExecutableDDLElement):
            if isinstance(statement, CreateTable) and statement.element.name.startswith(
                _BATCH_TABLE
            ):
                return
            self._check_definition(statement)

    def _check_definition(self, statement: ExecutableDDLElement) -> None:
        try:
            text = str(statement.compile(dialect=self._dialect))
        except Exception as error:  # noqa: BLE001 - type compilers raise any exception
            self._refuse(describe_error(error))
            return
        self._check_names(text)
        for column, number in _BOOLEAN_NUMBER.findall(text):
            self._refuse(
                f"the default {number} of the boolean column {column.strip(_QUOTE)} is a number; "
                "use sa.false() or sa.true()"
            )
        if isinstance(statement, CreateTable):
            self._check_table(statement.element)
        elif isinstance(statement, CreateIndex):
            index = statement.element
            self._add_relation(str(index.name), str(getattr(index.table, "name", "")))
        elif isinstance(statement, DropTable):
            table = statement.element.name
            self._relations = {
                name: owner for name, owner in self._relations.items() if owner != table
            }
        elif isinstance(statement, DropIndex):
            self._relations.pop(str(statement.element.name), None)

    def _check_table(self, table: sa.Table) -> None:
        self._add_relation(table.name, table.name)
        for constraint in table.constraints:
            if isinstance(constraint, sa.PrimaryKeyConstraint | sa.UniqueConstraint):
                self._add_relation(str(constraint.name or ""), table.name)
        for column in table.columns:
            kind = column.type
            if not isinstance(kind, sa.Enum) or not kind.native_enum or not kind.name:
                continue
            if kind.name in self._types:
                self._refuse(
                    f"two tables create the type {kind.name!r} of an Enum column; give each Enum "
                    "a name of its own"
                )
            self._types.add(kind.name)

    def _add_relation(self, name: str, table: str) -> None:
        """Record the name of a table, key or index.

        In PostgreSQL, tables, keys and indexes share one set of names.
        """
        if name and name in self._relations:
            owner = self._relations[name]
            self._refuse(f"tables {owner!r} and {table!r} both have a table, key or index {name!r}")
        if name:
            self._relations[name] = table

    def _check_names(self, text: str) -> None:
        for quoted, plain in _NAME.findall(_TEXT.sub("''", text)):
            name = quoted or plain
            size = len(name.encode())
            if size > NAME_BYTES and not name.startswith(_BATCH_TABLE):
                self._refuse(f"the name {name!r} has {size} bytes, and the limit is {NAME_BYTES}")

    def _refuse(self, text: str) -> None:
        if text not in self.refusals:
            self.refusals.append(text)
