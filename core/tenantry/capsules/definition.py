"""Describes tables as data, and creates tables from such descriptions.

Migrations create the tables of a restored tenant. For tables that no migration creates, such as
those of Flask-Migrate or of `create_all`, the capsule has a definition: names, types from a fixed
list, and literal defaults. A definition contains no SQL, because a capsule is untrusted input.
SQLAlchemy composes the statements, and quotes all names. A table has no definition if a part of the
table cannot be expressed, such as a check constraint, a trigger or an array.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

import sqlalchemy as sa
from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field
from sqlalchemy.dialects.postgresql import JSONB

from tenantry.capsules.printable_name import Name, Names

_JSONB = sa.JSON().with_variant(JSONB(), "postgresql")

_TYPES: Mapping[str, Callable[["ColumnDefinition"], sa.types.TypeEngine[Any]]] = {
    "BIGINT": lambda _: sa.BigInteger(),
    "BLOB": lambda _: sa.LargeBinary(),
    "BOOLEAN": lambda _: sa.Boolean(),
    "BYTEA": lambda _: sa.LargeBinary(),
    "CHAR": lambda column: sa.CHAR(column.length),
    "DATE": lambda _: sa.Date(),
    "DATETIME": lambda column: sa.DateTime(timezone=column.has_timezone),
    "DECIMAL": lambda column: sa.Numeric(column.precision, column.scale),
    "DOUBLE": lambda _: sa.Double(),
    "DOUBLE_PRECISION": lambda _: sa.Double(),
    "FLOAT": lambda _: sa.Float(),
    "INTEGER": lambda _: sa.Integer(),
    "JSON": lambda _: sa.JSON(),
    "JSONB": lambda _: _JSONB,
    "NUMERIC": lambda column: sa.Numeric(column.precision, column.scale),
    "REAL": lambda _: sa.REAL(),
    "SMALLINT": lambda _: sa.SmallInteger(),
    "TEXT": lambda _: sa.Text(),
    "TIME": lambda column: sa.Time(timezone=column.has_timezone),
    "TIMESTAMP": lambda column: sa.DateTime(timezone=column.has_timezone),
    "UUID": lambda _: sa.Uuid(),
    "VARCHAR": lambda column: sa.String(column.length),
}
"""Maps the type that SQLAlchemy finds in a database to the type of a restored column."""

_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{1,40})?")
_TEXT = re.compile(r"'((?:[^']|'')*)'")
_CAST = re.compile(r"::[a-z0-9_ ]+(\([0-9, ]+\))?$")
_NOW = {"current_timestamp", "now()"}

_SQLITE_EXTRAS = re.compile(
    r"\b(CHECK|COLLATE|CONFLICT|DEFERRABLE|GENERATED|STRICT|VIRTUAL|WITHOUT)\b", re.IGNORECASE
)
"""Words in a CREATE TABLE statement of SQLite that definitions cannot express."""

_SQLITE_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^]]*\]""")

_POSTGRES_EXTRAS = """
    SELECT relkind <> 'r' OR relhassubclass OR relispartition OR relrowsecurity
      OR EXISTS (SELECT FROM pg_constraint WHERE conrelid = pg_class.oid
                 AND (contype NOT IN ('p', 'u', 'f', 'n') OR condeferrable))
      OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid = pg_class.oid AND NOT tgisinternal)
    FROM pg_class
    WHERE relname = %s AND relnamespace = quote_ident(current_schema())::regnamespace
"""
"""A query that tells whether a table has parts that definitions cannot express."""


class NoDefinitionError(Exception):
    """A table has a part that definitions cannot express."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


def _check_type(name: str) -> str:
    if name not in _TYPES:
        raise ValueError(f"unknown type {name!r}")
    return name


def _check_number(text: str) -> str:
    if text and not _NUMBER.fullmatch(text):
        raise ValueError("not a number")
    return text


class DefaultValue(_Part):
    """The value that a column gets if a new row has no value for the column."""

    kind: Literal["text", "number", "true", "false", "now"]
    text: str = Field("", max_length=10_000)
    number: Annotated[str, AfterValidator(_check_number)] = ""


class ColumnDefinition(_Part):
    """A column of a table."""

    name: Name
    type: Annotated[str, AfterValidator(_check_type)]
    length: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    precision: Annotated[int, Field(ge=0, le=1000)] | None = None
    scale: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    has_timezone: bool = False
    is_nullable: bool = True
    is_autoincrement: bool = False
    default: DefaultValue | None = None


Action = Literal["", "CASCADE", "SET NULL", "SET DEFAULT", "RESTRICT", "NO ACTION"]
"""The action for a row when the row that its foreign key refers to changes or is deleted."""


class ForeignKey(_Part):
    """A foreign key: columns that refer to columns of another table."""

    columns: Names
    table: Name
    referred: Names
    on_delete: Action = ""
    on_update: Action = ""


class Index(_Part):
    """An index on columns, or a unique constraint."""

    name: Name
    columns: Names
    is_unique: bool = False
    is_constraint: bool = False
    """Whether the index is a unique constraint, which may lack a name."""


class TableDefinition(_Part):
    """All parts of a table that a restore creates."""

    columns: Annotated[list[ColumnDefinition], FailFast()]
    primary_key: Names = []
    has_sqlite_counter: bool = False
    """Whether the table has an AUTOINCREMENT counter in SQLite."""
    foreign_keys: Annotated[list[ForeignKey], FailFast()] = []
    indexes: Annotated[list[Index], FailFast()] = []


def describe_table(connection: sa.Connection, name: str) -> TableDefinition:
    """Return the definition of a table.

    Raises:
        NoDefinitionError: a definition cannot express a part of the table.
    """
    _check_no_extras(connection, name)
    try:
        with warnings.catch_warnings():
            # SQLAlchemy warns about each part of a table that it skips.
            warnings.simplefilter("error", sa.exc.SAWarning)
            return _describe(connection, name)
    except sa.exc.SAWarning as warning:
        raise NoDefinitionError(f"SQLAlchemy cannot read it ({warning})") from warning


def _describe(connection: sa.Connection, name: str) -> TableDefinition:
    inspector = sa.inspect(connection)
    key = list(inspector.get_pk_constraint(name)["constrained_columns"])
    columns = [_describe_column(column, key) for column in inspector.get_columns(name)]
    return TableDefinition(
        columns=columns,
        primary_key=key,
        has_sqlite_counter=connection.dialect.name == "sqlite" and _has_counter(connection, name),
        foreign_keys=[_describe_key(one) for one in inspector.get_foreign_keys(name)],
        indexes=_describe_indexes(inspector, name),
    )


def _check_no_extras(connection: sa.Connection, name: str) -> None:
    run = connection.exec_driver_sql
    if connection.dialect.name == "sqlite":
        query = "SELECT type, sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL"
        for kind, statement in run(query, (name,)).all():
            if kind == "trigger":
                raise NoDefinitionError("it has a trigger")
            if found := _SQLITE_EXTRAS.search(_SQLITE_QUOTED.sub("x", statement)):
                raise NoDefinitionError(f"its definition contains {found[0].upper()}")
    elif run(_POSTGRES_EXTRAS, (name,)).scalar():
        raise NoDefinitionError("it has a check, a trigger, partitions or row security")


def _has_counter(connection: sa.Connection, name: str) -> bool:
    query = "SELECT count(*) FROM sqlite_master WHERE name = ? AND sql LIKE '%AUTOINCREMENT%'"
    return bool(connection.exec_driver_sql(query, (name,)).scalar())


def _describe_column(column: Mapping[str, Any], key: Sequence[str]) -> ColumnDefinition:
    name, kind = column["name"], column["type"]
    type_name = str(getattr(kind, "__visit_name__", "")).upper()
    if type_name not in _TYPES or getattr(kind, "collation", None):
        raise NoDefinitionError(f"column {name!r} has the type {kind!r}")
    if "computed" in column:
        raise NoDefinitionError(f"column {name!r} is computed")
    text = column.get("default")
    is_serial = "identity" in column or str(text).startswith("nextval(")
    is_sqlite_id = list(key) == [name] and type_name == "INTEGER" and "autoincrement" not in column
    if is_serial and list(key) != [name]:
        raise NoDefinitionError(f"column {name!r} has a sequence, but is not the primary key")
    return ColumnDefinition(
        name=name,
        type=type_name,
        length=getattr(kind, "length", None),
        precision=getattr(kind, "precision", None) if type_name in {"NUMERIC", "DECIMAL"} else None,
        scale=getattr(kind, "scale", None) if type_name in {"NUMERIC", "DECIMAL"} else None,
        has_timezone=bool(getattr(kind, "timezone", False)),
        is_nullable=bool(column["nullable"]),
        is_autoincrement=is_serial or is_sqlite_id,
        default=None if is_serial or text is None else _parse_default(name, str(text)),
    )


def _parse_default(column: str, text: str) -> DefaultValue | None:
    """Parse the default value of a column from its SQL text."""
    text = text.strip()
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    text = _CAST.sub("", text)
    folded = text.lower()
    if folded == "null":
        return None
    if folded in _NOW:
        return DefaultValue(kind="now")
    if folded in {"true", "false"}:
        return DefaultValue(kind="true" if folded == "true" else "false")
    if _NUMBER.fullmatch(text):
        return DefaultValue(kind="number", number=text)
    if quoted := _TEXT.fullmatch(text):
        return DefaultValue(kind="text", text=quoted[1].replace("''", "'"))
    raise NoDefinitionError(f"column {column!r} has the default {text[:100]}")


def _describe_key(key: Mapping[str, Any]) -> ForeignKey:
    options = {name: value for name, value in key.get("options", {}).items() if value}
    if key.get("referred_schema") or options.keys() - {"ondelete", "onupdate"}:
        raise NoDefinitionError(f"its foreign key on {key['constrained_columns']} has options")
    return ForeignKey(
        columns=list(key["constrained_columns"]),
        table=key["referred_table"],
        referred=list(key["referred_columns"]),
        on_delete=_action(options.get("ondelete")),
        on_update=_action(options.get("onupdate")),
    )


def _action(text: object) -> Action:
    found = [one for one in get_args(Action) if one == str(text or "").upper()]
    if not found:
        raise NoDefinitionError(f"its foreign key has the action {text!r}")
    action: Action = found[0]
    return action


def _describe_indexes(inspector: sa.Inspector, name: str) -> list[Index]:
    unique = inspector.get_unique_constraints(name)
    indexes: list[Index] = []
    for constraint in unique:
        columns = [str(column) for column in constraint["column_names"]]
        indexes.append(
            Index(
                name=constraint["name"] or "", columns=columns, is_unique=True, is_constraint=True
            )
        )
    for index in inspector.get_indexes(name):
        if index.get("duplicates_constraint"):
            continue
        options = {key: value for key, value in index.get("dialect_options", {}).items() if value}
        if "expressions" in index or None in index["column_names"] or options:
            raise NoDefinitionError(f"its index {index['name']!r} has expressions or options")
        columns = [str(column) for column in index["column_names"]]
        indexes.append(
            Index(name=str(index["name"]), columns=columns, is_unique=bool(index["unique"]))
        )
    return indexes


def create_tables(
    connection: sa.Connection, definitions: Mapping[str, TableDefinition], existing: Iterable[str]
) -> None:
    """Create tables. Their foreign keys can refer to each other and to existing tables.

    Raises:
        SQLAlchemyError: the database rejects a name or a type.
    """
    metadata = sa.MetaData()
    for name in existing:
        referred = {
            column
            for definition in definitions.values()
            for key in definition.foreign_keys
            if key.table == name
            for column in key.referred
        }
        sa.Table(name, metadata, *(sa.Column(column, sa.Integer) for column in sorted(referred)))
    tables = [_table(metadata, name, definitions[name]) for name in sorted(definitions)]
    for table in tables:
        for key in definitions[table.name].foreign_keys:
            _add_foreign_key(metadata, table, key)
    metadata.create_all(connection, tables=tables, checkfirst=False)


def _table(metadata: sa.MetaData, name: str, definition: TableDefinition) -> sa.Table:
    parts: list[Any] = [_column(column, definition) for column in definition.columns]
    counter = definition.has_sqlite_counter
    table: sa.Table = sa.Table(name, metadata, *parts, sqlite_autoincrement=counter)
    for index in definition.indexes:
        columns = [table.c[column] for column in index.columns]
        if index.is_constraint:
            table.append_constraint(sa.UniqueConstraint(*columns, name=index.name or None))
        else:
            sa.Index(index.name, *columns, unique=index.is_unique)
    return table


def _add_foreign_key(metadata: sa.MetaData, table: sa.Table, key: ForeignKey) -> None:
    if key.table not in metadata.tables:
        raise NoDefinitionError(f"table {table.name!r} refers to {key.table!r}, which is missing")
    referred = metadata.tables[key.table]
    table.append_constraint(
        sa.ForeignKeyConstraint(
            [table.c[column] for column in key.columns],
            [referred.c[column] for column in key.referred],
            ondelete=key.on_delete or None,
            onupdate=key.on_update or None,
        )
    )


def _column(column: ColumnDefinition, definition: TableDefinition) -> sa.Column[Any]:
    is_key = column.name in definition.primary_key
    return sa.Column(
        column.name,
        _TYPES[column.type](column),
        primary_key=is_key,
        nullable=column.is_nullable and not is_key,
        autoincrement=column.is_autoincrement if is_key else False,
        server_default=None if column.default is None else _default(column, column.default),
    )


def _default(column: ColumnDefinition, default: DefaultValue) -> Any:
    if default.kind == "now":
        return sa.func.now()
    if column.type == "BOOLEAN" and default.kind in {"true", "false", "number"}:
        is_true = default.kind == "true" or (
            default.kind == "number" and Decimal(default.number or "0") != 0
        )
        return sa.true() if is_true else sa.false()
    if default.kind == "text":
        return default.text
    if default.kind == "number":
        return sa.text(default.number or "0")
    return sa.text("1" if default.kind == "true" else "0")
