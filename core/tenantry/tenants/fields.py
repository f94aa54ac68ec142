"""What single values of a tenant file must be: names, prefixes, secrets, host names, rates.

Each check returns the value, or raises a ValueError whose text says what is expected and what to
do; it never holds a secret.
"""

import ipaddress
import re

TENANT_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
"""A tenant's name: the stem of its file, a folder under `<data>`, a part of cookie names."""

RESERVED_NAMES = frozenset({"secrets"})
"""Folders under `<data>` that are the host's own."""

_SEGMENT = r"[a-z0-9][a-z0-9_-]{0,62}"
_PREFIX = re.compile(rf"(?:/{_SEGMENT}){{1,4}}")
"""Lower case only, so that no two prefixes differ by case; nothing that a URL would escape."""

RESERVED_SEGMENTS = frozenset(
    {"admin", "health", "healthz", "livez", "metrics", "readyz", "static"}
)
"""First segments that proxies, scrapers and probes in front of the host take for theirs."""

SECRET_KEY_CHARACTERS = 32
"""32 characters of hexadecimal are 128 bits, what HMAC-SHA1 (Flask's session signer) can use."""

_MAKE_ONE = "make one: python -c 'import secrets; print(secrets.token_hex(32))'"

_WELL_KNOWN_SECRETS = frozenset({
    "secret!", "secret", "secretkey", "secret_key", "secret-key", "changeme", "change-me",
    "change_me", "dev", "development", "test", "testing", "password", "default", "key", "mykey",
    "you-will-never-guess", "super-secret", "supersecret", "top-secret", "hard to guess string",
    # the examples of Flask's documentation
    "192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",
    '_5#y2l"f4q8z\\n\\xec]/',
})  # fmt: skip

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"  # containers have names with `_`
_HOST_NAME = re.compile(rf"\.?{_LABEL}(?:\.{_LABEL})*")

_RATE = r"\s*[1-9][0-9]{0,11}\s*(?:/|per)\s*(?:[1-9][0-9]{0,5})?\s*(?:second|minute|hour|day|month|year)s?\s*"  # noqa: E501 - one notation
_RATES = re.compile(rf"{_RATE}(?:[,;|]{_RATE})*", re.IGNORECASE)
"""The notation of the `limits` library (`limits.util.EXPR`), without rates of nothing."""


def check_tenant_name(value: str) -> str:
    """Return a tenant's name."""
    if not TENANT_NAME.fullmatch(value):
        raise ValueError("a tenant's name begins with a-z and has a-z, 0-9, _ and -, at most 63")
    if value in RESERVED_NAMES:
        raise ValueError(f"{value!r} is no tenant's name: the folder <data>/{value} is the host's")
    return value


def check_url_prefix(value: str) -> str:
    """Return a prefix under which a tenant may be mounted."""
    if not _PREFIX.fullmatch(value):
        raise ValueError(
            "expected one to four segments of a-z, 0-9, _ and - (each at most 63 long, not "
            "starting with _ or -), without a slash at the end, like '/acme'"
        )
    first = value.split("/")[1]
    if first in RESERVED_SEGMENTS:
        raise ValueError(
            f"/{first} is what proxies and probes take for theirs; choose another, like '/acme'"
        )
    return value


def check_secret(value: str) -> str:
    """Return a key that signs sessions."""
    if value.strip().lower() in _WELL_KNOWN_SECRETS:
        raise ValueError(f"is a well-known secret; {_MAKE_ONE}")
    if len(value) < SECRET_KEY_CHARACTERS:
        raise ValueError(
            f"has {len(value)} characters, expected at least {SECRET_KEY_CHARACTERS}; {_MAKE_ONE}"
        )
    return value


def check_host_name(value: str) -> str:
    """Return a host name as `TRUSTED_HOSTS` takes it: without a port, a dot for subdomains."""
    if "/" in value:
        raise ValueError("write it without a scheme or a path, like 'shop.example.org'")
    if re.fullmatch(r"[^:]+:\d*|\[.*\]:\d*", value):
        raise ValueError("write it without a port, like 'shop.example.org' or '[::1]'")
    if not (_HOST_NAME.fullmatch(value) or _is_ipv6(value)):
        raise ValueError(
            "expected a host name, like 'shop.example.org', '.example.org' (with subdomains), "
            "'192.0.2.1' or '[::1]'"
        )
    return value


def _is_ipv6(value: str) -> bool:
    try:
        return value[:1] == "[" and value[-1:] == "]" and bool(ipaddress.IPv6Address(value[1:-1]))
    except ValueError:
        return False


def check_rate_limit(value: str) -> str:
    """Return one rate, or several, in the notation of the `limits` library."""
    if not _RATES.fullmatch(value):
        raise ValueError(
            "expected a rate like '100/minute', '5 per 2 seconds' or '10/second; 1000/day', "
            "in seconds, minutes, hours, days, months or years"
        )
    return value


def check_maintenance(value: object) -> object:
    """Return True, False or a message."""
    if not isinstance(value, bool | str):
        raise ValueError("expected True, False or a message for the clients")  # noqa: TRY004 - pydantic's
    return value
