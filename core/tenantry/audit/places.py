"""Where an app's configuration keeps things: databases, stores and folders, as what they are.

Two names of one place have equal identities: links are followed, hosts are resolved, what is left
out of a URL is what its driver would take. Opens no connection; asks the resolver for hosts.
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

Config = Mapping[str, object]
Named = Iterator[tuple[str, object]]
"""A key of the configuration, or of a mapping in it (`CELERY['broker_url']`), and what it names."""

_FOLDER = re.compile(
    r"^(?!APPLICATION_ROOT$)(?!.*(?:API|COOKIE|DOCS|HEALTH|METRICS|ROUTE|SWAGGER|URL)).*"
    r"_(?:FOLDER|DIR|DIRECTORY|ROOT|PATH|DEST)$"
)
"""What is a path of a URL by its name is none of a folder."""
_OF_THE_CODE = re.compile(r"STATIC|TEMPLATE")
"""Folders whose relative paths begin at the code, which all may read."""

_OF_DATABASES = ("DATABASE_URI", "SQLALCHEMY_DATABASE_URI")
_DATABASES = frozenset({"sqlite", "postgresql", "mysql", "mariadb", "mssql", "oracle"})
_STORES: Mapping[str, tuple[str, int, str]] = {
    "redis": ("redis", 6379, "0"), "rediss": ("redis", 6379, "0"), "valkey": ("redis", 6379, "0"),
    "unix": ("redis", 0, "0"), "memcached": ("memcached", 11211, ""),
    "mongodb": ("mongodb", 27017, ""), "amqp": ("amqp", 5672, ""), "amqps": ("amqp", 5671, ""),
}  # fmt: skip
"""Scheme of a URL → what answers there, its port, and what it calls the first of its databases."""
_PREFIX = re.compile(r"(?:^|_)(?:KEY_?)?PREFIX$")
_PARTS_OF_A_STORE = re.compile(r"(.*REDIS)_HOST")


def databases(config: Config) -> Named:
    """Yield the databases, each by its file's inode, or by server, name and schema."""
    for key, text, _ in _texts(config):
        url = re.sub(r"^(?:db\+)?postgres:", "postgresql:", text).removeprefix("db+")  # Celery's
        scheme, mark, _ = url.partition("://")
        is_one = key in _OF_DATABASES or (key.startswith("SQLALCHEMY_BINDS[") and mark)
        if is_one or (mark and scheme.partition("+")[0].lower() in _DATABASES):
            found = _database(url)
            if found is not None:
                yield key, found


def _database(text: str) -> tuple[object, ...] | None:
    try:
        found = database_identity(text)
        if found is None or found[:2] == ("sqlite", "memory"):
            return found
        if found[0] == "sqlite":
            return ("sqlite", *inode(Path(found[1])))
        backend, host, *rest = found
        return (backend, _address(host), *rest)
    except (ArgumentError, ValueError):  # a URL of an extension's own form: only equal to itself
        return ("unknown", text)


def stores(config: Config) -> Named:
    """Yield the stores that are no databases of tables, by server, database and key prefix."""
    for key, text, beside in _texts(config):
        scheme = text.partition("://")[0].partition("+")[0].lower()
        if "://" in text and scheme in _STORES:
            prefix = _prefix(key, beside)
            yield from ((key, (*one, prefix)) for one in _servers(scheme, text))
        elif parts := _PARTS_OF_A_STORE.fullmatch(key):
            port, number = (config.get(f"{parts[1]}_{name}") for name in ("PORT", "DB"))
            where = ("redis", _address(text), str(port or 6379), str(number or 0))
            yield key, (*where, _prefix(key, beside))


def _servers(scheme: str, text: str) -> Iterator[tuple[str, ...]]:
    """Yield each server that a URL names, with the database there."""
    what, port, first = _STORES[scheme]
    try:
        whole = urlsplit(text)
        wanted = {name: values[0] for name, values in parse_qs(whole.query).items()}
        name = wanted.get("db") or wanted.get("virtual_host")
        if scheme == "unix" or whole.scheme.endswith("+socket"):
            yield (what, os.path.realpath(whole.path), "", name or first)
            return
        name = name or whole.path.strip("/") or first
        for server in whole.netloc.rpartition("@")[2].split(","):
            one = SplitResult("", server, "", "", "")
            host = _address(one.hostname or "localhost")
            yield (what, host, str(one.port or port), name)
    except ValueError:
        yield ("unknown", text)


def _prefix(key: str, beside: Mapping[Any, object]) -> str:
    """Return what the keys in a store begin with: `CACHE_KEY_PREFIX` for `CACHE_REDIS_URL`."""
    first = "" if "[" in key else key.partition("_")[0] + "_"
    for name, value in beside.items():
        is_near = isinstance(name, str) and name.startswith(first)
        if is_near and isinstance(value, str) and _PREFIX.search(name.upper()):
            return value
    return ""


def _texts(config: Config) -> Iterator[tuple[str, str, Config]]:
    """Yield each text with its key and the mapping that it is in, down to `BINDS['x']['url']`."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            for name, inner in value.items():
                label = f"{key}[{name!r}]"
                if isinstance(inner, Mapping):
                    yield from ((label, one, inner) for one in map(_text, inner.values()) if one)
                elif text := _text(inner):
                    yield label, text, value
        elif text := _text(value):
            yield key, text, config


def _text(value: object) -> str:
    if isinstance(value, URL):
        return value.render_as_string(hide_password=False)
    return value if isinstance(value, str) else ""


def folders(config: Config) -> Iterator[tuple[str, Path]]:
    """Yield the folders that keys name, a relative one from where the process was started."""
    for key, value in config.items():
        if value and isinstance(value, str | Path) and _FOLDER.search(key):
            path = Path(value)
            if path.is_absolute() or not _OF_THE_CODE.search(key):
                yield key, path.absolute()


def inode(path: Path) -> tuple[object, ...]:
    """Return what a file is, under whatever name: links of both kinds lead to one inode."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return (os.path.realpath(str(path).replace("\0", "")),)
    return (status.st_dev, status.st_ino)


@functools.lru_cache(maxsize=1024)
def _address(host: str) -> str:
    """Return the first address that a name resolves to; the name where it does not."""
    if host.startswith("/"):
        return os.path.realpath(host)
    try:
        found = str(min(one[4][0] for one in socket.getaddrinfo(host, None)))
        return "localhost" if ipaddress.ip_address(found).is_loopback else found
    except (OSError, ValueError):
        return host.lower()
