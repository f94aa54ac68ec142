"""The key `DATABASE_OPTIONS` of a tenant file: engine and driver options that a URL cannot express.

Options that `sqlalchemy.create_engine` accepts configure the app's engine. All other options go to
the driver, for the connections of the app, of migrations and of commands.

Importing SQLAlchemy takes 0.3 s, so this module imports it only for a tenant that has options.
"""

import inspect
import json
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tenantry.database.url import IDENTITY_PARAMETERS, names_search_path

if TYPE_CHECKING:
    from sqlalchemy import URL

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
"""The options of a tenant without `DATABASE_OPTIONS`."""

COMMAND_OPTIONS = {"prepare_threshold": None, "client_encoding": "utf8"}
"""Options of psycopg for the connections of commands and migrations.

Prepared statements do not work behind a pooler in transaction mode, and commands and migrations
send each statement only a few times. Without `client_encoding`, psycopg returns bytes for the text
of a SQL_ASCII database.
"""

_ENGINE_ONLY = frozenset({"connect_args", "enable_from_linting", "future"})
"""Parameters of `create_engine` that neither the dialect nor the engine declares."""

_NEEDS_OBJECT = frozenset({
    "creator", "dbapi", "dialect", "events", "json_deserializer", "json_serializer", "module",
    "plugins", "strategy", "url",
})  # fmt: skip
"""Parameters of `create_engine` whose values are Python objects, or that replace what Tenantry
sets."""

_OWN_POOL = ("pool", "max_overflow", "echo_pool")
"""Beginnings of the names of pool options."""

_SQLITE_NAMES = frozenset({"cached_statements", "detect_types", "timeout"})
"""Options of `sqlite3.connect`, except those that SQLAlchemy and Tenantry set."""

_PSYCOPG_OBJECTS = frozenset({"autocommit", "conninfo", "context", "cursor_factory", "row_factory"})
"""Options of `psycopg.connect` that belong to SQLAlchemy."""


def parse_options(url_text: str, value: object) -> dict[str, Any]:
    """Return valid options as JSON data, which a process for migrations can receive.

    Raises:
        ValueError: an option is unknown, or Tenantry or the URL determines it.
    """
    if not isinstance(value, Mapping):
        raise ValueError("expected a dict, like {'prepare_threshold': None}")  # noqa: TRY004 - pydantic expects ValueError
    options = {str(name): _plain(name, item) for name, item in value.items()}
    if not options:
        return {}
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - see the module docstring

    url = make_url(url_text)
    engine_names = _engine_names(url)
    for name, item in options.items():
        _check_owner(name)
        if name not in engine_names:
            _check_driver_option(url, name, item, engine_names)
    nested = options.get("connect_args", {})
    if not isinstance(nested, dict):
        raise ValueError("['connect_args']: expected a dict")  # noqa: TRY004 - pydantic expects ValueError
    for name, item in nested.items():
        _check_driver_option(url, name, item, ())
    _check_engine_values(url, options)
    return options


def engine_options(url: "URL", options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for `create_engine`, without `connect_args`."""
    if not options:
        return {}
    names = _engine_names(url) - {"connect_args"}
    return {name: value for name, value in options.items() if name in names}


def driver_options(url: "URL", options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for the driver's `connect()`, which override those of the URL.

    The `options` of a PostgreSQL URL are kept, because they may name the tenant's schema.
    """
    if not options:
        return {}
    names = _engine_names(url)
    found = {name: value for name, value in options.items() if name not in names}
    found |= options.get("connect_args", {})
    if "options" in found and "options" in url.query:
        of_url = url.query["options"]
        words = (of_url,) if isinstance(of_url, str) else of_url
        found["options"] = " ".join((*words, str(found["options"])))
    return found


def command_options(url: "URL", options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the driver options for a connection of a command or of a migration."""
    is_psycopg = url.drivername == "postgresql+psycopg"
    defaults: Mapping[str, Any] = COMMAND_OPTIONS if is_psycopg else {}
    defaults = {name: value for name, value in defaults.items() if name not in url.query}
    return defaults | driver_options(url, options)


def _plain(name: object, value: object) -> Any:
    if not isinstance(name, str):
        raise ValueError(f"found the name {name!r}; expected the name of an option")  # noqa: TRY004 - pydantic expects ValueError
    value = str(value) if isinstance(value, Path) else value
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        raise ValueError(
            f"[{name!r}]: expected None, True, False, a number, text, or a list or dict of these"
        ) from None


def _check_owner(name: str) -> None:
    if name.startswith(_OWN_POOL):
        raise ValueError(
            f"[{name!r}]: all tenants of a process share one pool of connections, so a tenant "
            "cannot configure it; set TENANTRY_DB_CONNECTIONS instead"
        )
    if name in _NEEDS_OBJECT or name.startswith("_"):
        raise ValueError(f"[{name!r}]: Tenantry sets this option; remove it")


def _check_driver_option(url: "URL", name: str, value: object, others: Collection[str]) -> None:
    if name in IDENTITY_PARAMETERS:
        raise ValueError(f"[{name!r}]: write this in 'DATABASE_URI', which names the database")
    if name in _PSYCOPG_OBJECTS:
        raise ValueError(f"[{name!r}]: SQLAlchemy sets this option; remove it")
    if name == "options" and names_search_path(str(value)):
        raise ValueError(
            "['options']: write the search_path in 'DATABASE_URI', which names the database: "
            "?options=-csearch_path%3Dacme"
        )
    known = _driver_names(url)
    if known is not None and name not in known:
        close = get_close_matches(name, [*known, *others], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; remove it"
        raise ValueError(f"[{name!r}]: unknown option of the driver{hint}")


def _engine_names(url: "URL") -> frozenset[str]:
    """Return the names of the options, except pool options, that `create_engine` accepts for a URL.

    `create_engine` itself collects the names from the same classes.
    """
    from sqlalchemy import Engine  # noqa: PLC0415 - see the module docstring
    from sqlalchemy.util import get_cls_kwargs  # noqa: PLC0415 - takes 0.3 s

    return _ENGINE_ONLY.union(get_cls_kwargs(url.get_dialect()), get_cls_kwargs(Engine))


def _driver_names(url: "URL") -> frozenset[str] | None:
    """Return the names of the driver's options, or None for a driver that does not list them."""
    if url.get_driver_name() == "pysqlite":
        return _SQLITE_NAMES
    if url.get_driver_name() != "psycopg":
        return None
    import psycopg  # noqa: PLC0415 - an optional dependency

    parameters = inspect.signature(psycopg.Connection.connect).parameters
    names = {name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
    return frozenset(names | {one.keyword.decode() for one in psycopg.pq.Conninfo.get_defaults()})


def _check_engine_values(url: "URL", options: Mapping[str, Any]) -> None:
    """Create an engine without connecting, so that SQLAlchemy rejects wrong values."""
    from sqlalchemy import NullPool, create_engine  # noqa: PLC0415 - see the module docstring
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - takes 0.3 s

    try:
        create_engine(url, poolclass=NullPool, **engine_options(url, options))
    except (SQLAlchemyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"SQLAlchemy rejects an option: {error}") from None
    _check_isolation_level(url, options)


def _check_isolation_level(url: "URL", options: Mapping[str, Any]) -> None:
    """Check the isolation level, which SQLAlchemy checks only when a connection opens."""
    level = options.get("isolation_level")
    if level is None:
        return
    levels = tuple(url.get_dialect()().get_isolation_level_values(None))  # type: ignore[arg-type]
    if str(level).replace("_", " ").upper() not in levels:  # as SQLAlchemy compares
        raise ValueError(f"['isolation_level']: found {level!r}; expected {', '.join(levels)}")
