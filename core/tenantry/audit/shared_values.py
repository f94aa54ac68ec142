"""Finds keys, databases, folders, names and cookies that two tenants have in common.

An endpoint may change a value of the tenant file, so the comparison reads the configuration of the
built apps. The comparison ignores the names of Prometheus metrics. If two apps share a Prometheus
metric, `shared_objects` reports the metric. If two apps create a metric of the same name, the build
of the second app fails.

The comparison recognizes different spellings of the same database, store or folder, because it
follows links, resolves host names, and fills in the defaults of URLs. The comparison queries DNS,
but does not connect to a database or store.
"""

import functools
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePath
from typing import Any, cast
from urllib.parse import SplitResult, parse_qs, urlsplit

from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from tenantry.audit.finding import (
    AuditedTenant,
    Finding,
    finding_id,
    join_names,
    key_location,
)
from tenantry.audit.raw_access import is_a
from tenantry.database.url import database_identity
from tenantry.tenants.openid import OpenId

Config = Mapping[Any, Any]
Identity = tuple[object, ...]

_FOLDER_KEY = re.compile(
    r"^(?!(?:APPLICATION_ROOT|APP_DIR)$)(?!.*(?:API|COOKIE|DOCS|HEALTH|METRICS|ROUTE|SWAGGER|URL)).*"
    r"_(?:FOLDER|DIR|DIRECTORY|ROOT|PATH|DEST)$"
)
"""Pattern of configuration keys that name a folder.

The excluded words occur in keys that hold the path of a URL, not a folder. Tenants may share
`APP_DIR`, because each tenant has its own copy of the modules.
"""
_CODE_FOLDER_KEY = re.compile(r"STATIC|TEMPLATE")
"""Pattern of keys that name a folder in an endpoint's code, which tenants may share."""
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
"""Maps the URL scheme of a store to the kind of server, its default port and database."""

_SIGNING_KEY = re.compile(r"SECRET_KEY$|SIGNING_KEY$|JWT_PRIVATE_KEY$|SECURITY_PASSWORD_SALT$")


@dataclass(frozen=True)
class _Comparison:
    """A kind of value that should differ between tenants."""

    kind: str
    values: Callable[[AuditedTenant, Path], Iterable[tuple[str, object]]]
    """Function that receives a tenant and the host's `DATA_DIR`, and returns keys and values."""
    statement: str
    """The second part of the sentence in a finding that begins with "'KEY' of acme and 'KEY' of
    globex"."""
    remedy: str


def compare_values(tenants: Sequence[AuditedTenant], data_dir: Path) -> Iterator[Finding]:
    """Yield a finding for each value that two or more tenants have in common."""
    for comparison in _COMPARISONS:
        yield from _equal_values(comparison, tenants, data_dir)
    yield from _shared_tokens(tenants)
    yield from _foreign_folders(tenants, data_dir)


def _equal_values(
    comparison: _Comparison, tenants: Sequence[AuditedTenant], data_dir: Path
) -> Iterator[Finding]:
    owners: dict[object, dict[str, str]] = {}
    files = {audited.name: audited.tenant.file for audited in tenants}
    for audited in tenants:
        for key, value in comparison.values(audited, data_dir):
            owners.setdefault(value, {}).setdefault(audited.name, key)
    for keys in owners.values():
        if len(keys) > 1:
            (first, first_key), (second, second_key), *more = keys.items()
            others = f" (and {len(more)} more tenants)" if more else ""
            yield Finding(
                id=finding_id(comparison.kind, first_key),
                tenants=tuple(keys),
                text=f"{first_key!r} of {first} and {second_key!r} of {second}{others} "
                f"{comparison.statement}",
                remedy=comparison.remedy,
                paths=(
                    f"{first}: {files[first]} → {first_key}",
                    f"{second}: {files[second]} → {second_key}",
                ),
                place=key_location(files[second], second_key),
            )


def _signing_keys(audited: AuditedTenant) -> Iterator[tuple[str, object]]:
    config = audited.app.config
    named = [(key, value) for key, value in _items(config) if _SIGNING_KEY.search(key)]
    for number, old_key in enumerate(config["SECRET_KEY_FALLBACKS"] or ()):
        named.append((f"SECRET_KEY_FALLBACKS[{number}]", old_key))
    for key, value in named:
        if text := value.decode("latin-1") if is_a(value, bytes) else _text(value):
            yield key, text


def _folder_identities(audited: AuditedTenant, data_dir: Path) -> Iterator[tuple[str, object]]:
    yield f"<data>/{audited.name}", file_identity(data_dir / audited.name)
    for key, path in _outer_folders(audited, data_dir):
        yield key, file_identity(path)


def _outer_folders(audited: AuditedTenant, data_dir: Path) -> Iterator[tuple[str, Path]]:
    """Yield the folders of a configuration that are not in the tenant's own data folder."""
    own = os.path.realpath(data_dir / audited.name)
    for key, path in folders(audited.app.config):
        if not Path(os.path.realpath(path)).is_relative_to(own):
            yield key, path


def _client_keys(audited: AuditedTenant) -> Iterator[tuple[str, object]]:
    for client in () if audited.tenant.clients is None else audited.tenant.clients.all:
        for digest in client.digests:
            yield f"CLIENTS[{client.name!r}]", digest


_COMPARISONS = (
    _Comparison(
        kind="shared-secret",
        values=lambda audited, _: _signing_keys(audited),
        statement="are the same key",
        remedy="create a key for each: python -c 'import secrets; print(secrets.token_hex(32))'",
    ),
    _Comparison(
        kind="shared-database",
        values=lambda audited, _: databases(audited.app.config),
        statement="name the same database",
        remedy="give each tenant its own database, and move the tenant's rows there",
    ),
    _Comparison(
        kind="shared-store",
        values=lambda audited, _: stores(audited.app.config),
        statement="name the same store",
        remedy="give each tenant its own database number or key prefix (CACHE_KEY_PREFIX)",
    ),
    _Comparison(
        kind="shared-folder",
        values=_folder_identities,
        statement="are the same folder",
        remedy="give each tenant its own folder, and remove links to another tenant's folder",
    ),
    _Comparison(
        kind="shared-cookie-name",
        values=lambda audited, _: [
            ("SESSION_COOKIE_NAME", audited.app.config["SESSION_COOKIE_NAME"])
        ],
        statement="are the same cookie name",
        remedy="remove SESSION_COOKIE_NAME: the default differs for each tenant",
    ),
    _Comparison(
        kind="shared-client-key",
        values=lambda audited, _: _client_keys(audited),
        statement="are the same key, so the client of one can call the other",
        remedy="give the client a different key at each tenant: tenantry key NAME CLIENT",
    ),
)


def _shared_tokens(tenants: Sequence[AuditedTenant]) -> Iterator[Finding]:
    """Yield a finding for each issuer and audience whose tokens several tenants accept."""
    groups: dict[tuple[str, str], list[tuple[AuditedTenant, OpenId]]] = {}
    for audited in tenants:
        if (openid := audited.tenant.oidc) is not None:
            for audience in openid.audiences:
                groups.setdefault((openid.issuer, audience), []).append((audited, openid))
    for (issuer, audience), members in groups.items():
        files = {
            audited.name: audited.tenant.file
            for first, second in combinations(members, 2)
            if not _require_different_claims(first[1], second[1])
            for audited, _ in (first, second)
        }
        if files:
            yield Finding(
                id=finding_id("shared-token", audience),
                tenants=tuple(files),
                text=f"{join_names([*files])} accept the same tokens: "
                f"'issuer' {issuer}, 'audience' {audience!r}",
                remedy="give each tenant its own 'audience' in OIDC, or 'claims' with values that "
                "no other tenant requires",
                paths=tuple(f"{name}: {file} → OIDC" for name, file in [*files.items()][:2]),
                place=key_location([*files.values()][1], "OIDC"),
            )


def _require_different_claims(first: OpenId, second: OpenId) -> bool:
    """Whether two tenants require different values of a claim, so that no token fits both."""
    wanted = [
        {name: {(type(value), value) for value in values} for name, values in openid.claims}
        for openid in (first, second)
    ]
    common = wanted[0].keys() & wanted[1].keys()
    return any(wanted[0][name].isdisjoint(wanted[1][name]) for name in common)


def _foreign_folders(tenants: Sequence[AuditedTenant], data_dir: Path) -> Iterator[Finding]:
    owners = {os.path.realpath(data_dir / audited.name): audited.name for audited in tenants}
    for audited in tenants:
        for key, path in _outer_folders(audited, data_dir):
            real_path = Path(os.path.realpath(path))
            for folder in (real_path, *real_path.parents):
                owner = owners.get(str(folder), audited.name)
                if owner != audited.name:
                    yield Finding(
                        id=finding_id("foreign-folder", key),
                        tenants=(audited.name, owner),
                        text=f"{key!r} of {audited.name} is in the data folder of {owner}",
                        remedy=f"move it into <data>/{audited.name}",
                        paths=(f"{audited.name}: {audited.tenant.file} → {key} → {real_path}",),
                        place=key_location(audited.tenant.file, key),
                    )


def databases(config: Config) -> Iterator[tuple[str, Identity]]:
    """Yield the key and the identity of each database.

    The identity of a file is its device and inode. The identity of a database on a server consists
    of the server's address, the database name and the schema.
    """
    # The tenant file's key comes first, because Tenantry sets `SQLALCHEMY_DATABASE_URI` from it.
    for key, text, _ in sorted(_texts(config), key=lambda found: found[0] != "DATABASE_URI"):
        # Celery puts `db+` in front of SQLAlchemy URLs.
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
    """Yield the key and the identity of each Redis, memcached, MongoDB or AMQP database.

    The identity includes a key prefix, such as the value of `CACHE_KEY_PREFIX` for
    `CACHE_REDIS_URL`.
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
    """Yield the key and the absolute path of each folder in a configuration.

    A relative path is relative to the working directory.
    """
    for key, value in _items(config):
        if is_a(value, str, PurePath) and str(value) and _FOLDER_KEY.search(key):
            path = Path(value)
            if path.is_absolute() or not _CODE_FOLDER_KEY.search(key):
                yield key, path.absolute()


def file_identity(path: Path) -> Identity:
    """Return the device and inode of a file or folder, or the real path if it does not exist."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # the file does not exist, or its path contains a NUL character
        return (os.path.realpath(str(path).replace("\0", "")),)
    return (status.st_dev, status.st_ino)


def _texts(config: Config) -> Iterator[tuple[str, str, Config]]:
    """Yield each text in a configuration, with its key and the mapping that contains it.

    Texts in nested values, such as `SQLALCHEMY_BINDS['x']['url']`, are included.
    """
    for key, value in _items(config):
        if not is_a(value, dict):
            if text := _text(value):
                yield key, text, config
            continue
        for name, inner in value.items():
            is_nested = is_a(inner, dict)
            for item in inner.values() if is_nested else [inner]:
                if text := _text(item):
                    yield f"{key}[{name!r}]", text, inner if is_nested else value


def _items(config: Config) -> list[tuple[str, Any]]:
    """Return the items of a configuration. An app can add keys of any type, which are omitted."""
    return [(key, value) for key, value in config.items() if type(key) is str]


def _text(value: object) -> str:
    if is_a(value, URL):
        return cast("URL", value).render_as_string(hide_password=False)
    return str(value) if is_a(value, str) else ""


def _database_identity(url: str) -> Identity | None:
    try:
        identity = database_identity(url)
        if identity is None or identity[:2] == ("sqlite", "memory"):
            return identity
        if identity[0] == "sqlite":
            return ("sqlite", *file_identity(Path(identity[1])))
        backend, host, *rest = identity
        return (backend, _address(host), *rest)
    except (ArgumentError, ValueError):  # compare the text of a URL that SQLAlchemy cannot parse
        return ("unknown", url)


def _servers(scheme: str, text: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield the kind, address, port and database of each server in a store's URL."""
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
    except ValueError:  # the URL is invalid, for example in the port
        yield "unknown", text, "", ""


def _key_prefix(key: str, siblings: Config) -> str:
    """Return the key prefix that belongs to the URL of a store."""
    group = "" if "[" in key else key.partition("_")[0] + "_"
    for name, value in siblings.items():
        if (
            is_a(name, str)
            and is_a(value, str)
            and name.startswith(group)
            and _PREFIX_KEY.search(name.upper())
        ):
            return str(value)
    return ""


@functools.lru_cache(maxsize=1024)
def _address(host: str) -> str:
    """Return the lowest IP address of a host name, or the name if DNS does not know it."""
    if host.startswith("/"):  # the host is the path of a Unix socket
        return os.path.realpath(host)
    try:
        address = min(str(info[4][0]) for info in socket.getaddrinfo(host, None))
        return "localhost" if ipaddress.ip_address(address).is_loopback else address
    except (OSError, ValueError):  # the host name is unknown or invalid
        return host.lower()
