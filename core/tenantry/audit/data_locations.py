"""The databases, stores and folders that an app's configuration names, in a form to compare.

Two spellings of one location have the same identity: links are followed, host names are resolved,
and defaults that a URL omits are filled in. Opens no connection, but queries DNS for host names.
"""

import functools
import ipaddress
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from tenantry.database.url import database_identity

Config = Mapping[Any, Any]
Identity = tuple[object, ...]

_FOLDER_KEY = re.compile(
    r"^(?!APPLICATION_ROOT$)(?!.*(?:API|COOKIE|DOCS|HEALTH|METRICS|ROUTE|SWAGGER|URL)).*"
    r"_(?:FOLDER|DIR|DIRECTORY|ROOT|PATH|DEST)$"
)
"""Keys that name a folder. The excluded words mark keys that hold a path of a URL."""
_CODE_FOLDER_KEY = re.compile(r"STATIC|TEMPLATE")
"""Folders that tenants may share, because a relative path is relative to the code."""
_PREFIX_KEY = re.compile(r"(?:^|_)(?:KEY_?)?PREFIX$")
_REDIS_HOST_KEY = re.compile(r"(.*REDIS)_HOST")

_DATABASE_KEYS = ("DATABASE_URI", "SQLALCHEMY_DATABASE_URI")
_DATABASE_SCHEMES = frozenset({"sqlite", "postgresql", "mysql", "mariadb", "mssql", "oracle"})
_STORE_SCHEMES: Mapping[str, tuple[str, int, str]] = {
    "redis": ("redis", 6379, "0"),
    "rediss": ("redis", 6379, "0"),
    "valkey": ("redis", 6379, "0"),
    "unix": ("redis", 0, "0"),
    "memcached": ("memcached", 11211, ""),
    "mongodb": ("mongodb", 27017, ""),
    "amqp": ("amqp", 5672, ""),
    "amqps": ("amqp", 5671, ""),
}
"""URL scheme → the kind of server, its default port and its default database."""


def databases(config: Config) -> Iterator[tuple[str, Identity]]:
    """Yield key and identity of each database: a file's inode, or server, name and schema."""
    for key, text, _ in _texts(config):
        # Celery prefixes SQLAlchemy URLs with db+.
        url = re.sub(r"^(?:db\+)?postgres:", "postgresql:", text).removeprefix("db+")
        scheme, separator, _ = url.partition("://")
        is_database = (
            key in _DATABASE_KEYS
            or (key.startswith("SQLALCHEMY_BINDS[") and separator)
            or (separator and scheme.partition("+")[0].lower() in _DATABASE_SCHEMES)
        )
        identity = _database_identity(url) if is_database else None
        if identity is not None:
            yield key, identity


def stores(config: Config) -> Iterator[tuple[str, Identity]]:
    """Yield key and identity of each Redis, memcached, MongoDB or AMQP database.

    The identity includes the key prefix, such as `CACHE_KEY_PREFIX` for `CACHE_REDIS_URL`.
    """
    for key, text, siblings in _texts(config):
        scheme = text.partition("://")[0].partition("+")[0].lower()
        if "://" in text and scheme in _STORE_SCHEMES:
            for server in _servers(scheme, text):
                yield key, (*server, _key_prefix(key, siblings))
        elif match := _REDIS_HOST_KEY.fullmatch(key):
            port = str(config.get(f"{match[1]}_PORT") or 6379)
            database = str(config.get(f"{match[1]}_DB") or 0)
            yield key, ("redis", _address(text), port, database, _key_prefix(key, siblings))


def folders(config: Config) -> Iterator[tuple[str, Path]]:
    """Yield key and absolute path of each folder. Relative paths start at the working directory."""
    for key, value in config.items():
        if value and isinstance(value, str | Path) and _FOLDER_KEY.search(key):
            path = Path(value)
            if path.is_absolute() or not _CODE_FOLDER_KEY.search(key):
                yield key, path.absolute()


def file_identity(path: Path) -> Identity:
    """Return the device and inode of a file or folder; its real path if it does not exist."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return (os.path.realpath(str(path).replace("\0", "")),)
    return (status.st_dev, status.st_ino)


def _texts(config: Config) -> Iterator[tuple[str, str, Config]]:
    """Yield key, text and enclosing mapping, down to `SQLALCHEMY_BINDS['x']['url']`."""
    for key, value in config.items():
        if not isinstance(value, Mapping):
            if text := _text(value):
                yield key, text, config
            continue
        for name, inner in value.items():
            is_nested = isinstance(inner, Mapping)
            for item in inner.values() if is_nested else [inner]:
                if text := _text(item):
                    yield f"{key}[{name!r}]", text, inner if is_nested else value


def _text(value: object) -> str:
    if isinstance(value, URL):
        return value.render_as_string(hide_password=False)
    return value if isinstance(value, str) else ""


def _database_identity(url: str) -> Identity | None:
    try:
        identity = database_identity(url)
        if identity is None or identity[:2] == ("sqlite", "memory"):
            return identity
        if identity[0] == "sqlite":
            return ("sqlite", *file_identity(Path(identity[1])))
        backend, host, *rest = identity
        return (backend, _address(host), *rest)
    except (ArgumentError, ValueError):  # an extension's own kind of URL is equal only to itself
        return ("unknown", url)


def _servers(scheme: str, text: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield kind, address, port and database for each server in a store's URL."""
    kind, default_port, default_database = _STORE_SCHEMES[scheme]
    try:
        url = urlsplit(text)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        database = query.get("db") or query.get("virtual_host")
        if scheme == "unix" or url.scheme.endswith("+socket"):
            yield kind, os.path.realpath(url.path), "", database or default_database
            return
        database = database or url.path.strip("/") or default_database
        for server in url.netloc.rpartition("@")[2].split(","):
            part = SplitResult("", server, "", "", "")
            address = _address(part.hostname or "localhost")
            yield kind, address, str(part.port or default_port), database
    except ValueError:  # such as a port that is not a number
        yield "unknown", text, "", ""


def _key_prefix(key: str, siblings: Config) -> str:
    """Return the prefix of the store's keys that is configured beside its URL."""
    group = "" if "[" in key else key.partition("_")[0] + "_"
    for name, value in siblings.items():
        if (
            isinstance(name, str)
            and isinstance(value, str)
            and name.startswith(group)
            and _PREFIX_KEY.search(name.upper())
        ):
            return value
    return ""


@functools.lru_cache(maxsize=1024)
def _address(host: str) -> str:
    """Return the first address of a host name; the name itself if it does not resolve."""
    if host.startswith("/"):  # a socket's folder
        return os.path.realpath(host)
    try:
        address = min(str(info[4][0]) for info in socket.getaddrinfo(host, None))
        return "localhost" if ipaddress.ip_address(address).is_loopback else address
    except (OSError, ValueError):
        return host.lower()
