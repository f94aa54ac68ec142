"""What `CLIENTS` of a tenant file must be; client keys, and what is kept of them.

The parser returns a frozen, compact value, or raises with everything that is wrong in it. No text
holds a key.
"""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

from tenantry.tenants.problems import Found, nearest

KEY_PREFIX = "tenantry_"
"""Begins each key that we make, so that secret scanners find one that was committed."""

KEY_BYTES = 32
"""Of randomness in a key: 256 bits."""

CLIENTS_LIMIT = 500
"""Each key costs every request a comparison of 0.2 µs; a longer list wants an issuer (`OIDC`)."""

KEYS_LIMIT = 5
"""Of one client: the new one, the old one, and room for mistakes."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")  # no colon: see `oidc:`
_HASH = re.compile(r"sha256:([0-9A-Fa-f]{64})")


def new_client_key() -> str:
    """Return a new client key: `tenantry_` and 64 hexadecimal digits."""
    return KEY_PREFIX + secrets.token_hex(KEY_BYTES)


def key_digest(key: bytes) -> bytes:
    """Return what is kept of a key: its SHA-256.

    A slow password hash would cost each request 100 ms and protect nothing more: nobody guesses
    256 random bits, however fast one guess is.
    """
    return hashlib.sha256(key).digest()


def hash_client_key(key: str) -> str:
    """Return a key as it stands in a tenant file: `sha256:…`."""
    return _told(key_digest(key.encode()))


def _told(digest: bytes) -> str:
    return f"sha256:{digest.hex()}"


@dataclass(frozen=True, slots=True)
class Client:
    """One entry of `CLIENTS`."""

    name: str
    digests: tuple[bytes, ...]
    endpoints: tuple[str, ...] | None = None
    """The only ones, as they stand in `BLUEPRINTS`; None: all."""
    methods: tuple[str, ...] | None = None
    """The only ones; None: all."""
    expires: datetime | None = None
    """From then on it is refused; aware."""

    def plain(self) -> dict[str, Any]:
        """Return the entry in a tenant file's form."""
        limits = {
            "endpoints": None if self.endpoints is None else list(self.endpoints),
            "methods": None if self.methods is None else list(self.methods),
            "expires": None if self.expires is None else self.expires.isoformat(),
        }
        given = {key: value for key, value in limits.items() if value is not None}
        return {"key": [_told(digest) for digest in self.digests]} | given


@dataclass(frozen=True, slots=True)
class Clients:
    """The content of `CLIENTS`."""

    all: tuple[Client, ...]

    def plain(self) -> dict[str, Any]:
        """Return it in a tenant file's form."""
        return {client.name: client.plain() for client in self.all}


def parse_clients(value: object, tenant: str, endpoints: Sequence[str] | None) -> Clients | None:
    """Return the clients of a tenant; None where it is open.

    Args:
        value: what the file says.
        tenant: its name, for remedies.
        endpoints: its `BLUEPRINTS`; None when they are bad themselves.
    """
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise ValueError(
            "expected a dict of client name → 'sha256:…' with at least one client; make a key: "
            f"tenantry key {tenant} CLIENT. For an open tenant remove 'CLIENTS'"
        )
    if len(value) > CLIENTS_LIMIT:
        raise ValueError(f"expected at most {CLIENTS_LIMIT} clients, not {len(value):,}; use OIDC")
    found = Found()
    for name in value:
        if not is_client_name(name):
            found.problems.append(("", f"one of the clients' names is none; {_NAME_RULE}"))
    named = {name: entry for name, entry in value.items() if is_client_name(name)}
    parsed = [
        found.take(f"[{name!r}]", _client, name, entry, tenant, endpoints)
        for name, entry in named.items()
    ]
    clients = Clients(tuple(one for one in parsed if one is not None))
    found.problems += _same_keys(clients)
    found.end()
    return clients


_NAME_RULE = "expected at most 64 letters, digits, '.', '_', '@' and '-', a letter or digit first"


def is_client_name(value: object) -> bool:
    """Whether a client may be called so."""
    return isinstance(value, str) and _CLIENT_NAME.fullmatch(value) is not None


def check_client_name(value: str) -> str:
    """Return a client's name."""
    if not is_client_name(value):
        raise ValueError(_NAME_RULE)
    return value


def _same_keys(clients: Clients) -> list[tuple[str, str]]:
    owners: dict[bytes, str] = {}
    found = []
    for client in clients.all:
        for digest in client.digests:
            owner = owners.setdefault(digest, client.name)
            if owner != client.name:
                text = f"has a key of client {owner!r} too; give each its own"
                found.append((f"[{client.name!r}]", text))
    return found


def _client(name: str, entry: object, tenant: str, endpoints: Sequence[str] | None) -> Client:
    remedy = f"make one: tenantry key {tenant} {name}"
    if not isinstance(entry, dict):
        return Client(name, _digests(entry, remedy))
    found = Found()
    found.take_unknown(entry, ("key", "endpoints", "methods", "expires"))
    if entry.get("key") is None:
        found.problems.append(("", f"has no 'key'; {remedy}"))
    digests = found.take_item(entry, "key", lambda value: _digests(value, remedy))
    known = None if endpoints is None else tuple(endpoints)
    limits = found.take_item(entry, "endpoints", lambda value: _names(value, known, _NO_ENDPOINT))
    methods = found.take_item(entry, "methods", lambda value: _names(value, METHODS, "no method"))
    expires = found.take_item(entry, "expires", _moment)
    found.end()
    return Client(name, digests or (), limits, methods, expires)


_NO_ENDPOINT = "none of the tenant's 'BLUEPRINTS'"


def _digests(value: object, remedy: str) -> tuple[bytes, ...]:
    if isinstance(value, str):
        return (_digest(value, remedy),)
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= KEYS_LIMIT:
        raise ValueError(f"expected 'sha256:…', or a list of one to {KEYS_LIMIT} such; {remedy}")
    found = Found()
    digests = [found.take(f"[{place}]", _digest, one, remedy) for place, one in enumerate(value)]
    found.end()
    return tuple(dict.fromkeys(digest for digest in digests if digest is not None))


def _digest(value: object, remedy: str) -> bytes:
    match = _HASH.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            "is no hash of a key: expected 'sha256:' and 64 hexadecimal digits. A key itself does "
            f"not belong into a file; {remedy}"
        )
    return bytes.fromhex(match[1])


def _names(value: object, known: Sequence[str] | None, fault: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("expected a list of at least one name; for no limit remove it")
    found = Found()
    for place, name in enumerate(value):
        if not isinstance(name, str):
            found.problems.append((f"[{place}]", f"found {type(name).__name__}; expected a name"))
        elif known is not None and name not in known:
            found.problems.append((f"[{place}]", f"{name!r} is {fault}; {nearest(name, known)}"))
    found.end()
    return tuple(dict.fromkeys(value))


def _moment(value: object) -> datetime:
    """Return when something ends: a date ends with its last moment, in UTC."""
    try:
        moment = _read_moment(value) if isinstance(value, str) else value
        if isinstance(moment, datetime):
            aware = moment if moment.utcoffset() is not None else moment.replace(tzinfo=UTC)
            return aware.astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # told below
    raise ValueError(
        "expected a date like '2027-01-31' (its last moment counts, UTC) or a date-time like "
        "'2027-01-31T12:00+01:00'"
    )


def _read_moment(text: str) -> datetime:
    try:
        return datetime.combine(date.fromisoformat(text), time.max, UTC)
    except ValueError:
        return datetime.fromisoformat(text)
