"""Checks a `DATABASE_URI`, and finds out whether two URLs name the same database.

Checking a URL does not connect to the database. SQLAlchemy is imported only for URLs that are not a
plain SQLite file, because the import takes 0.3 s at each start, and most tenants have the default
database, a plain SQLite file.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

SCHEMA_QUERY = "SELECT current_schema()"
"""Query that returns the schema in which a PostgreSQL connection creates tables."""

_PLAIN_FILE = re.compile(r"sqlite:///([\w./-]+)")
"""Pattern of a SQLite URL that consists of a path only."""

_SETTING = re.compile(r"(?:^|\s)(?:-c\s*|--)([\w.-]+)=((?:\\.|\S)*)")
"""Pattern of a setting in the `options` of a PostgreSQL connection: `-c NAME=VALUE` or
`--NAME=VALUE`."""

_BEFORE_QUERY = ("dbname", "user", "password", "service", "hostaddr")
"""libpq parameters that are rejected in the query part of a URL. libpq prefers query parameters to
the main part of a URL, so the URL would not show which database is used, and the password would be
visible."""

_HOST_AND_PORT = re.compile(r"([\w.-]+):(\d+)")
"""Pattern of the only allowed `host` in the query part of a URL: the form that SQLAlchemy
splits."""

_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


def check_database_url(text: str) -> None:
    """Check a URL like `parse_database_url`, without importing SQLAlchemy for a SQLite file.

    Raises:
        ValueError: `parse_database_url` rejects the URL.
    """
    if not _PLAIN_FILE.fullmatch(text):
        parse_database_url(text)


def parse_database_url(text: str) -> "URL":
    """Return the parsed database URL.

    Raises:
        ValueError: the URL cannot be parsed or is ambiguous, the URL's dialect is unknown, or the
            URL's driver is not installed. The text of the error does not contain the password.
    """
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - see the module docstring
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError  # noqa: PLC0415 - as above

    try:
        url = make_url(_without_nul(text))
        url.get_dialect().import_dbapi()
    except NoSuchModuleError:
        name = text.partition(":")[0]
        raise ValueError(f"names an unknown dialect {name!r}; use sqlite or postgresql") from None
    # The text of the original exception may contain a part of the password.
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
    """Return why a connection uses another schema than its URL names; None for the same schema.

    A URL has to name the schema that the server uses, because URLs are compared by their text.

    Args:
        url: a database URL that `check_database_url` accepts.
        current_schema: the server's answer to `SCHEMA_QUERY`.
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
    """Return a copy of a PostgreSQL URL that names the given schema."""
    options = url.query.get("options", ())
    words = " ".join((options,) if isinstance(options, str) else options)
    others = [setting[0] for setting in _SETTING.finditer(words) if not _is_search_path(setting[1])]
    search_path = f'-csearch_path="{schema}"'
    return url.update_query_dict({"options": " ".join([*map(str.strip, others), search_path])})


def plain_file(text: str) -> Path | None:
    """Return the file of a SQLite URL that consists of a path only; None for any other URL."""
    plain = _PLAIN_FILE.fullmatch(text)
    return None if plain is None else Path(plain[1])


def database_identity(text: str) -> tuple[str, ...] | None:
    """Return the identity of a URL's database, equal for two URLs of one database.

    A SQLite file is identified by the file's real path, so `a.db`, `./a.db` and a link to `a.db`
    are equal. A server's database is identified by host, port and name, and in PostgreSQL also by
    the schema in which connections create tables (`?options=-csearch_path%3Dacme`). User and
    password do not affect the identity.
    """
    if plain := _PLAIN_FILE.fullmatch(text):
        return ("sqlite", os.path.realpath(plain[1]))
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - see the module docstring

    url = make_url(text)
    backend = url.get_backend_name()
    if backend == "sqlite":
        return _sqlite_identity(url)
    host, port = _host_and_port(url)
    # If a URL has no database name, PostgreSQL uses the user's name.
    identity = (backend, host, port, url.database or url.username or "")
    schema = _schema(url) if backend == "postgresql" else "public"
    return identity if schema == "public" else (*identity, schema)


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a URL cannot contain NUL")
    return text


def _check_query(url: "URL") -> None:
    misplaced = [name for name in _BEFORE_QUERY if name in url.query]
    misplaced += [name for name in ("host", "port") if name in url.query and getattr(url, name)]
    if misplaced:
        raise ValueError(
            f"has {misplaced[0]!r} after the '?', where it would override the rest; write "
            "dialect://user:password@host:port/database"
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
        # The whole process shares one in-memory database of the same name.
        return ("sqlite", "memory", path)
    return None if is_in_memory else ("sqlite", os.path.realpath(path))


def _schema(url: "URL") -> str:
    """Return the schema in which a checked URL's connections create tables."""
    return _search_path(url)[0]


def _search_path(url: "URL") -> list[str]:
    """Return the schemas of a URL's search path. Quoted names are assumed to have no comma."""
    options = url.query.get("options", ())
    text = " ".join((options,) if isinstance(options, str) else options)
    path = "public"
    for name, value in _SETTING.findall(text):
        if _is_search_path(name):
            path = re.sub(r"\\(.)", r"\1", value)  # a backslash escapes a space
    names = [name.strip() for name in path.split(",")]
    return [name[1:-1] if name[:1] == '"' else name.lower() for name in names]


def _is_search_path(setting: str) -> bool:
    return setting.lower().replace("-", "_") == "search_path"


def default_database_url(data_dir: Path, name: str) -> str:
    """Return the URL of a tenant that names no database: a SQLite file in the tenant's folder."""
    return f"sqlite:///{(data_dir / name / name).absolute()}.sqlite3"
