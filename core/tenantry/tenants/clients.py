"""The key `CLIENTS` of a tenant file: a tenant's clients and the hashes of their keys.

No error message contains a client key.
"""

import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import partial
from typing import Any

from tenantry.tenants.problems import ProblemCollector, suggestion

KEY_PREFIX = "tenantry_"
"""Prefix of each client key, so that secret scanners can find a client key in a repository."""

KEY_BYTES = 32
"""Number of random bytes in a client key: 256 bits."""

CLIENTS_LIMIT = 500
"""Maximum number of clients, because each client key adds 0.2 µs to every request. A tenant with
more clients can use `OIDC`."""

KEYS_LIMIT = 5
"""Maximum number of keys per client: a new key, an old key and a few spare keys."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

# A client name has no colon, so it cannot equal `oidc:SUB`, the name of a client with a token.
_CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")

_NAME_RULE = (
    "expected 1 to 64 characters of A-Z, a-z, 0-9, '.', '_', '@' and '-', beginning with a letter "
    "or digit"
)

_KEY_HASH = re.compile(r"sha256:([0-9A-Fa-f]{64})")


def new_client_key() -> str:
    """Return a new client key: `tenantry_` and 64 hexadecimal digits."""
    return KEY_PREFIX + secrets.token_hex(KEY_BYTES)


def key_digest(key: bytes) -> bytes:
    """Return the SHA-256 of a client key. A tenant file contains the hash, never the key.

    A slow password hash would add 100 ms to every request. It would not add protection, because
    nobody can guess the 256 random bits of a client key.
    """
    return hashlib.sha256(key).digest()


def hash_client_key(key: str) -> str:
    """Return the hash of a client key as written in a tenant file: `sha256:…`."""
    return _file_form(key_digest(key.encode()))


def _file_form(digest: bytes) -> str:
    return f"sha256:{digest.hex()}"


@dataclass(frozen=True, slots=True)
class Client:
    """One entry of `CLIENTS`."""

    name: str
    digests: tuple[bytes, ...]
    endpoints: tuple[str, ...] | None = None
    """The endpoints that the client may use, as written in `BLUEPRINTS`; None means all."""
    methods: tuple[str, ...] | None = None
    """The HTTP methods that the client may use; None means all."""
    expires: datetime | None = None
    """Time at which the client's access ends, as a timezone-aware time; None means never."""

    def to_config(self) -> dict[str, Any]:
        """Return the client's entry in `CLIENTS`, as written in a tenant file."""
        limits = {
            "endpoints": None if self.endpoints is None else list(self.endpoints),
            "methods": None if self.methods is None else list(self.methods),
            "expires": None if self.expires is None else self.expires.isoformat(),
        }
        given = {key: value for key, value in limits.items() if value is not None}
        return {"key": [_file_form(digest) for digest in self.digests]} | given


@dataclass(frozen=True, slots=True)
class Clients:
    """The content of `CLIENTS`."""

    all: tuple[Client, ...]

    def to_config(self) -> dict[str, Any]:
        """Return `CLIENTS` as written in a tenant file."""
        return {client.name: client.to_config() for client in self.all}


def is_client_name(value: object) -> bool:
    """Whether a value is a valid client name."""
    return isinstance(value, str) and _CLIENT_NAME.fullmatch(value) is not None


def check_client_name(value: str) -> str:
    """Return a valid client name, or raise a `ValueError`."""
    if not is_client_name(value):
        raise ValueError(_NAME_RULE)
    return value


def parse_clients(value: object, tenant: str, endpoints: Sequence[str] | None) -> Clients | None:
    """Return the clients of a tenant, or None if the tenant is open to everyone.

    Args:
        value: the value of `CLIENTS` in the tenant file.
        tenant: the tenant's name, for the commands in error messages.
        endpoints: the tenant's `BLUEPRINTS`; None if that value is invalid.
    """
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise ValueError(
            "expected a dict of client name → 'sha256:…' with at least one client; create a key: "
            f"tenantry key {tenant} CLIENT. To let everybody in, remove 'CLIENTS'"
        )
    if len(value) > CLIENTS_LIMIT:
        raise ValueError(f"expected at most {CLIENTS_LIMIT} clients, not {len(value):,}; use OIDC")
    problems = ProblemCollector()
    clients: list[Client] = []
    for name, entry in value.items():
        if not is_client_name(name):
            problems.add("", f"contains an invalid client name; {_NAME_RULE}")
            continue
        parse = partial(_parse_client, name, tenant, endpoints)
        client = problems.parse(f"[{name!r}]", parse, entry)
        if client is not None:
            clients.append(client)
    _check_keys_differ(clients, problems)
    problems.raise_if_any()
    return Clients(tuple(clients))


def _check_keys_differ(clients: Sequence[Client], problems: ProblemCollector) -> None:
    owners: dict[bytes, str] = {}
    for client in clients:
        for digest in client.digests:
            owner = owners.setdefault(digest, client.name)
            if owner != client.name:
                text = f"has the same key as client {owner!r}; give each client its own"
                problems.add(f"[{client.name!r}]", text)


def _parse_client(name: str, tenant: str, endpoints: Sequence[str] | None, entry: object) -> Client:
    remedy = f"create a key: tenantry key {tenant} {name}"
    parse_keys = partial(_parse_keys, remedy)
    if not isinstance(entry, dict):
        return Client(name, parse_keys(entry))
    problems = ProblemCollector()
    problems.reject_unknown(entry, ("key", "endpoints", "methods", "expires"))
    if entry.get("key") is None:
        problems.add("", f"has no 'key'; {remedy}")
    client = Client(
        name=name,
        digests=problems.parse_item(entry, "key", parse_keys) or (),
        endpoints=problems.parse_item(
            entry, "endpoints", partial(_parse_names, endpoints, "is not in 'BLUEPRINTS'")
        ),
        methods=problems.parse_item(
            entry, "methods", partial(_parse_names, METHODS, "is not a method")
        ),
        expires=problems.parse_item(entry, "expires", _parse_expiry),
    )
    problems.raise_if_any()
    return client


def _parse_list(value: Sequence[object], parse: Callable[[Any], Any]) -> tuple[Any, ...]:
    """Return the parsed items without duplicates, or raise an error with all problems."""
    problems = ProblemCollector()
    items = [problems.parse(f"[{place}]", parse, item) for place, item in enumerate(value)]
    problems.raise_if_any()
    return tuple(dict.fromkeys(items))


def _parse_keys(remedy: str, value: object) -> tuple[bytes, ...]:
    parse = partial(_parse_key_hash, remedy)
    if isinstance(value, str):
        return (parse(value),)
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= KEYS_LIMIT:
        raise ValueError(f"expected 'sha256:…', or a list of 1 to {KEYS_LIMIT} of them; {remedy}")
    return _parse_list(value, parse)


def _parse_key_hash(remedy: str, value: object) -> bytes:
    match = _KEY_HASH.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            "is not the hash of a key; expected 'sha256:' and 64 hexadecimal digits. Never write a "
            f"key itself into a file; {remedy}"
        )
    return bytes.fromhex(match[1])


def _parse_names(known: Sequence[str] | None, fault: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("expected a list of at least one name; to allow all, remove it")
    return _parse_list(value, partial(_check_known, known, fault))


def _check_known(known: Sequence[str] | None, fault: str, name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"found {type(name).__name__}; expected a name")  # noqa: TRY004 - pydantic expects ValueError
    if known is not None and name not in known:
        raise ValueError(f"{name!r} {fault}; {suggestion(name, known)}")
    return name


def _parse_expiry(value: object) -> datetime:
    try:
        moment = _parse_moment(value) if isinstance(value, str) else value
        if isinstance(moment, datetime):
            aware = moment if moment.utcoffset() is not None else moment.replace(tzinfo=UTC)
            return aware.astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # the following error describes the invalid value
    raise ValueError(
        "expected a date like '2027-01-31' (valid to its end, UTC) or a date and time like "
        "'2027-01-31T12:00+01:00'"
    )


def _parse_moment(text: str) -> datetime:
    try:
        return datetime.combine(date.fromisoformat(text), time.max, UTC)
    except ValueError:
        return datetime.fromisoformat(text)
