"""What a `DATABASE_URI` names: checks it and tells whether two of them name one database.

Opens no connection. SQLAlchemy is imported for URLs that need it to be understood: it costs 0.3 s
of every start, and most tenants have the default, a plain SQLite file.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

_PLAIN_FILE = re.compile(r"sqlite:///([\w./-]+)")
"""A SQLite URL that is a path and nothing else."""

_SETTING = re.compile(r"(?:^|\s)(?:-c\s*|--)([\w.-]+)=((?:\\.|\S)*)")
"""A setting among the options of a PostgreSQL connection: `-c NAME=VALUE` or `--NAME=VALUE`."""

_OF_THE_URL = ("dbname", "user", "password", "service", "hostaddr")
"""What libpq would take from the query before it looks at the rest of the URL: then nobody could
tell whose database it is, and a password would be shown with the query."""

_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


def check_database_url(text: str) -> None:
    """Check what `parse_database_url` would, as cheaply as it can be.

    Raises:
        ValueError: as there.
    """
    if not _PLAIN_FILE.fullmatch(text):
        parse_database_url(text)


def parse_database_url(text: str) -> "URL":
    """Return the URL.

    Raises:
        ValueError: it cannot be parsed, its dialect is unknown or its driver is not installed;
            the text says which and never shows the password.
    """
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - see above
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError  # noqa: PLC0415

    try:
        url = make_url(_without_nul(text))
        url.get_dialect().import_dbapi()
    except NoSuchModuleError:
        name = text.partition(":")[0]
        raise ValueError(f"names an unknown dialect {name!r}; use sqlite or postgresql") from None
    except (ArgumentError, ValueError):  # its text may hold a part of the password
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


def _check_query(url: "URL") -> None:
    twice = [name for name in _OF_THE_URL if name in url.query]
    if twice:
        raise ValueError(
            f"has {twice[0]!r} behind the '?', where it would win over the rest; write "
            "dialect://user:password@host:port/database"
        )


def plain_file(text: str) -> Path | None:
    """Return the file that a good URL names and says nothing else about; None for any other."""
    plain = _PLAIN_FILE.fullmatch(text)
    return None if plain is None else Path(plain[1])


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("no path and no name of a database holds a NUL")
    return text


def database_identity(text: str) -> tuple[str, ...] | None:
    """Return what two good URLs of one database have in common; None where nobody can share it.

    A SQLite file counts by its real path, so `a.db`, `./a.db` and a link to it are one; a
    server's database counts by host, port and name, and in PostgreSQL by the schema in which its
    tables are made (`?options=-csearch_path%3Dacme`): user and password do not matter.
    """
    if plain := _PLAIN_FILE.fullmatch(text):
        return ("sqlite", os.path.realpath(plain[1]))
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - see above

    url = make_url(text)
    backend = url.get_backend_name()
    if backend == "sqlite":
        return _sqlite_identity(url)
    host = str(url.host or url.query.get("host") or "localhost").lower().rstrip(".")
    host = "localhost" if host in ("127.0.0.1", "::1") else host
    port = url.port or url.query.get("port") or _DEFAULT_PORTS.get(backend, 0)
    # Without a name, PostgreSQL takes the user's.
    identity = (backend, host, str(port), url.database or url.username or "")
    schema = _schema(url) if backend == "postgresql" else "public"
    return identity if schema == "public" else (*identity, schema)


def _sqlite_identity(url: "URL") -> tuple[str, ...] | None:
    path = (url.database or "").removeprefix("file:")
    is_in_memory = path in ("", ":memory:") or url.query.get("mode") == "memory"
    if is_in_memory and url.query.get("cache") == "shared":
        return ("sqlite", "memory", path)  # one for the whole process
    return None if is_in_memory else ("sqlite", os.path.realpath(path))


def _schema(url: "URL") -> str:
    """Return the schema in which a connection's tables are made: the first of its search path."""
    options = url.query.get("options", ())
    words = " ".join((options,) if isinstance(options, str) else options)
    path = "public"
    for name, value in _SETTING.findall(words):
        if name.lower().replace("-", "_") == "search_path":
            path = re.sub(r"\\(.)", r"\1", value)  # a backslash keeps a blank from ending it
    first = path.split(",")[0].strip()
    if first in ('"$user"', "$user"):
        return url.username or ""
    return first[1:-1] if first[:1] == '"' else first.lower()
