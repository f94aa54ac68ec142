"""What a `DATABASE_URI` names: checks it and tells whether two of them name one database.

Opens no connection.
"""

from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


def parse_database_url(text: str) -> URL:
    """Return the URL.

    Raises:
        ValueError: it cannot be parsed, its dialect is unknown or its driver is not installed;
            the text says which and never shows the password.
    """
    try:
        url = make_url(text)
        url.get_dialect().import_dbapi()
    except NoSuchModuleError:
        name = text.partition(":")[0]
        raise ValueError(f"names an unknown dialect {name!r}; use sqlite or postgresql") from None
    except ArgumentError:
        raise ValueError("cannot be parsed; write dialect://user:password@host/database") from None
    except ImportError as error:
        raise ValueError(
            f"needs the driver {error.name!r}, which is not installed; "
            "for PostgreSQL: pip install 'tenantry[postgres]', and write postgresql+psycopg://"
        ) from None
    return url


def database_identity(url: URL) -> tuple[str, ...] | None:
    """Return what two URLs of one database have in common; None where nobody can share it.

    A SQLite file counts by its real path, so `a.db`, `./a.db` and a link to it are one; a
    server's database counts by host, port and name: user, password and options do not matter.
    """
    backend = url.get_backend_name()
    if backend == "sqlite":
        if not url.database or url.database == ":memory:" or "mode=memory" in url.database:
            return None
        path = url.database.removeprefix("file:").partition("?")[0]
        return (backend, str(Path(path).resolve()))
    host = (url.host or "localhost").lower().rstrip(".")
    host = "localhost" if host in ("127.0.0.1", "::1") else host
    port = url.port or _DEFAULT_PORTS.get(backend, 0)
    return (backend, host, str(port), url.database or "")
