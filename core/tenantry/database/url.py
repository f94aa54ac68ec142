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

SCHEMA_QUERY = "SELECT current_schema()"
"""In which schema of PostgreSQL a connection makes its tables: what `wrong_schema` judges."""

_HOST_AND_PORT = re.compile(r"([\w.-]+):(\d+)")
"""The one host behind the '?', as SQLAlchemy takes it apart."""

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
    twice += [name for name in ("host", "port") if name in url.query and getattr(url, name)]
    if twice:
        raise ValueError(
            f"has {twice[0]!r} behind the '?', where it would win over the rest; write "
            "dialect://user:password@host:port/database"
        )
    names = _search_path(url)
    if len(names) > 1:
        raise ValueError(
            f"has a search_path of {len(names)} schemas: what is not in the first is looked for "
            "in the others, which may be another tenant's; name one, and write shared.name for "
            "what is in another"
        )
    if names[0] in {"", "$user"}:
        raise ValueError(
            "has a search_path that names no schema; write it: ?options=-csearch_path%3Dacme"
        )


def wrong_schema(url: "URL", found: str | None) -> str | None:
    """Say why a PostgreSQL connection is not in its URL's schema, and what to do; None if it is.

    Two URLs are told apart by what stands in them, so that has to be what the server makes of it.

    Args:
        url: which was checked.
        found: what the server answered to `SCHEMA_QUERY`.
    """
    wanted = _schema(url)
    if found == wanted:
        return None
    if found is None:
        return f"there is no schema {wanted!r}, or it may not be used; run CREATE SCHEMA first"
    return (
        f"its tables would be in schema {found!r}, and its URL says {wanted!r}; write which one "
        f"is meant: ?options=-csearch_path%3D{found} or ?options=-csearch_path%3D{wanted}"
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
    host, port = _host_and_port(url)
    # Without a name, PostgreSQL takes the user's.
    identity = (backend, host, port, url.database or url.username or "")
    schema = _schema(url) if backend == "postgresql" else "public"
    return identity if schema == "public" else (*identity, schema)


def _host_and_port(url: "URL") -> tuple[str, str]:
    host = str(url.host or url.query.get("host") or "localhost").lower()
    port = url.port or url.query.get("port")
    if not port and (both := _HOST_AND_PORT.fullmatch(host)):
        host, port = both.groups()
    host = host.rstrip(".")
    host = "localhost" if host in ("127.0.0.1", "::1") else host
    return host, str(port or _DEFAULT_PORTS.get(url.get_backend_name(), 0))


def _sqlite_identity(url: "URL") -> tuple[str, ...] | None:
    path = (url.database or "").removeprefix("file:")
    is_in_memory = path in ("", ":memory:") or url.query.get("mode") == "memory"
    if is_in_memory and url.query.get("cache") == "shared":
        return ("sqlite", "memory", path)  # one for the whole process
    return None if is_in_memory else ("sqlite", os.path.realpath(path))


def _schema(url: "URL") -> str:
    """Return the schema that a good URL names, in which its tables are made."""
    return _search_path(url)[0]


def _search_path(url: "URL") -> list[str]:
    """Return the schemas that a URL has looked through; of those in quotes none has a comma."""
    options = url.query.get("options", ())
    words = " ".join((options,) if isinstance(options, str) else options)
    path = "public"
    for name, value in _SETTING.findall(words):
        if name.lower().replace("-", "_") == "search_path":
            path = re.sub(r"\\(.)", r"\1", value)  # a backslash keeps a blank from ending it
    names = [name.strip() for name in path.split(",")]
    return [name[1:-1] if name[:1] == '"' else name.lower() for name in names]


def default_database_url(data_dir: Path, name: str) -> str:
    """Return the URL of a tenant that names no database: a SQLite file in the tenant's folder."""
    return f"sqlite:///{(data_dir / name / name).absolute()}.sqlite3"
