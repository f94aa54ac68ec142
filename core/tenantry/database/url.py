"""Checks database URLs, and detects whether two URLs name the same database.

Checking a URL does not connect to the database. Importing SQLAlchemy takes 0.3 s, and most tenants
use the default database, a plain SQLite file. Therefore, SQLAlchemy is imported only for URLs that
are not a plain SQLite file.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

SCHEMA_QUERY = "SELECT current_schema()"
"""A query that returns the schema in which a PostgreSQL connection creates tables."""

_PLAIN_FILE = re.compile(r"sqlite:///([\w./-]+)")
"""Pattern of a SQLite URL that has no parts except a path."""

_SETTING = re.compile(r"(?:^|\s)(?:-c\s*|--)([\w.-]+)=((?:\\.|\S)*)")
"""Pattern of a setting in the `options` of a PostgreSQL URL: `-c NAME=VALUE` or `--NAME=VALUE`."""

_BEFORE_QUERY = ("dbname", "user", "password", "service", "hostaddr")
"""Parameters of libpq that are rejected in the query part of a URL.

In libpq, the query part takes precedence over the rest of the URL. With such parameters in its
query part, a URL would not show which database is used, and would reveal the password in logs.
"""

IDENTITY_PARAMETERS = frozenset({*_BEFORE_QUERY, "conninfo", "database", "host", "port", "uri"})
"""Driver options that would select a database other than the one in the URL."""

_DRIVER_ONLY = ("prepare_threshold", "autocommit", "row_factory", "cursor_factory", "context")
"""Options of psycopg whose values are not text, so that a URL cannot express them."""

_HOST_AND_PORT = re.compile(r"([\w.-]+):(\d+)")
"""Pattern of an allowed `host` in the query part of a URL, which SQLAlchemy can split."""

_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


def check_database_url(text: str) -> None:
    """Check a database URL. For a plain SQLite file, SQLAlchemy is not imported.

    Raises:
        ValueError: `parse_database_url` would reject the URL.
    """
    if not _PLAIN_FILE.fullmatch(text):
        parse_database_url(text)


def parse_database_url(text: str) -> "URL":
    """Parse and check a database URL.

    Raises:
        ValueError: the URL is invalid or ambiguous, its dialect is unknown, or its driver is not
            installed. The text of the error does not contain the password.
    """
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - see the module docstring
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError  # noqa: PLC0415 - takes 0.3 s

    try:
        url = make_url(_without_nul(text))
        url.get_dialect().import_dbapi()
    except NoSuchModuleError:
        name = text.partition(":")[0]
        raise ValueError(f"names an unknown dialect {name!r}; use sqlite or postgresql") from None
    # The text of the original exception may contain parts of the password.
    except (ArgumentError, ValueError):
        raise ValueError(
            "cannot be parsed; write dialect://user:password@host:port/database, "
            "with %40 for @, %3A for : and %2F for / in the password"
        ) from None
    except ImportError as error:
        remedy = (
            "pip install 'tenantry[postgres]', and write postgresql+psycopg://"
            if url.get_backend_name() == "postgresql"
            else "install it, or use sqlite or postgresql"
        )
        raise ValueError(
            f"needs the driver {error.name or url.drivername!r}, which is not installed; {remedy}"
        ) from None
    if url.get_backend_name() == "postgresql":
        _check_query(url)
    return url


def schema_problem(url: "URL", current_schema: str | None) -> str | None:
    """Return why a connection does not use the schema that its URL names, or None.

    Tenantry compares databases by their URLs, so a URL has to name the schema that the server uses.

    Args:
        url: a valid database URL.
        current_schema: the result of `SCHEMA_QUERY`.
    """
    schema = _schema(url)
    if current_schema == schema:
        return None
    if current_schema is None:
        return (
            f"the schema {schema!r} does not exist, or this user may not use it; "
            "run CREATE SCHEMA first"
        )
    return (
        f"it would create tables in schema {current_schema!r}, but its URL names {schema!r}; set "
        f"?options=-csearch_path%3D{current_schema} or ?options=-csearch_path%3D{schema}"
    )


def with_schema(url: "URL", schema: str) -> "URL":
    """Return a copy of a PostgreSQL URL that names the schema."""
    options = url.query.get("options", ())
    words = " ".join((options,) if isinstance(options, str) else options)
    others = [setting[0] for setting in _SETTING.finditer(words) if not _is_search_path(setting[1])]
    search_path = f'-csearch_path="{schema}"'
    return url.update_query_dict({"options": " ".join([*map(str.strip, others), search_path])})


def plain_file(text: str) -> Path | None:
    """Return the file of a plain SQLite URL, or None for any other URL."""
    plain = _PLAIN_FILE.fullmatch(text)
    return None if plain is None else Path(plain[1])


def database_identity(text: str) -> tuple[str, ...] | None:
    """Return the identity of a database. Two URLs of one database have the same identity.

    The identity of a SQLite file is its real path, so `a.db`, `./a.db` and a link to `a.db` are the
    same. The identity of a database on a server consists of the host, the port and the name. For
    PostgreSQL, the schema in which connections create tables is also part of the identity
    (`?options=-csearch_path%3Dacme`). The user and the password are not part of the identity.
    """
    if plain := _PLAIN_FILE.fullmatch(text):
        return ("sqlite", os.path.realpath(plain[1]))
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - see the module docstring

    url = make_url(text)
    backend = url.get_backend_name()
    if backend == "sqlite":
        return _sqlite_identity(url)
    host, port = _host_and_port(url)
    # If a URL has no database name, PostgreSQL uses the name of the user.
    identity = (backend, host, port, url.database or url.username or "")
    schema = _schema(url) if backend == "postgresql" else "public"
    return identity if schema == "public" else (*identity, schema)


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a URL cannot contain a NUL character")
    return text


def _check_query(url: "URL") -> None:
    misplaced = [name for name in _BEFORE_QUERY if name in url.query]
    misplaced += [name for name in ("host", "port") if name in url.query and getattr(url, name)]
    if misplaced:
        raise ValueError(
            f"has {misplaced[0]!r} after the '?', which would override the rest; write "
            "dialect://user:password@host:port/database"
        )
    if unsuitable := [name for name in _DRIVER_ONLY if name in url.query]:
        raise ValueError(
            f"has {unsuitable[0]!r} after the '?', which a URL cannot express; write "
            "DATABASE_OPTIONS = {'prepare_threshold': None} in the tenant file"
        )
    schemas = _search_path(url)
    if len(schemas) > 1:
        raise ValueError(
            f"has a search_path of {len(schemas)} schemas, so a name that is not in the first "
            "could mean another tenant's table; name one schema, and write shared.name for a "
            "table in another one"
        )
    if schemas[0] in {"", "$user"}:
        raise ValueError(
            "has a search_path that names no schema; name it: ?options=-csearch_path%3Dacme"
        )


def _host_and_port(url: "URL") -> tuple[str, str]:
    host = str(url.host or url.query.get("host") or "localhost").lower()
    port = url.port or url.query.get("port")
    if not port and (match := _HOST_AND_PORT.fullmatch(host)):
        host, port = match.groups()
    host = host.rstrip(".")
    host = "localhost" if host in ("127.0.0.1", "::1") else host
    return host, str(port or _DEFAULT_PORTS.get(url.get_backend_name(), 0))


def _sqlite_identity(url: "URL") -> tuple[str, ...] | None:
    path = (url.database or "").removeprefix("file:")
    is_in_memory = path in ("", ":memory:") or url.query.get("mode") == "memory"
    if is_in_memory and url.query.get("cache") == "shared":
        # All connections of a process share an in-memory database of the same name.
        return ("sqlite", "memory", path)
    return None if is_in_memory else ("sqlite", os.path.realpath(path))


def _schema(url: "URL") -> str:
    """Return the schema in which connections with a valid URL create tables."""
    return _search_path(url)[0]


def _search_path(url: "URL") -> list[str]:
    """Return the schemas in the search path of a URL. A quoted name must not contain a comma."""
    options = url.query.get("options", ())
    text = " ".join((options,) if isinstance(options, str) else options)
    path = "public"
    for name, value in _SETTING.findall(text):
        if _is_search_path(name):
            path = re.sub(r"\\(.)", r"\1", value)  # a backslash escapes a space
    names = [name.strip() for name in path.split(",")]
    return [name[1:-1] if name[:1] == '"' else name.lower() for name in names]


def names_search_path(options: str) -> bool:
    """Whether the `options` of a PostgreSQL connection set the search path."""
    return any(_is_search_path(name) for name, _ in _SETTING.findall(options))


def _is_search_path(setting: str) -> bool:
    return setting.lower().replace("-", "_") == "search_path"


def is_in_memory(url: "URL") -> bool:
    """Whether a SQLite URL names a database in memory, and not a file."""
    name = (url.database or "").removeprefix("file:")
    return name in ("", ":memory:") or url.query.get("mode") == "memory"


def default_database_url(data_dir: Path, name: str) -> str:
    """Return the URL of a tenant's default database: a SQLite file in the tenant's folder."""
    # A `Path` would keep each tenant's name in the interpreter's table of interned strings.
    return f"sqlite:///{data_dir.absolute()}/{name}/{name}.sqlite3"
