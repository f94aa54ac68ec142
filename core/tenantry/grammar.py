"""The grammar of names: tenants, URL prefixes and host names.

This is the only definition of each. Operators write these names in tenant files, in settings and on
the command line; requests carry them. A `check_…` function returns the name or raises `ValueError`.
The error says what is expected. The caller adds where the name stands and, unless it is secret,
the name itself.
"""

import ipaddress
import re

TENANT_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
"""A tenant's name. It is also the stem of a file, a folder under `<data>` and part of a cookie's
name, so none of them has to escape it."""

RESERVED_TENANT_NAMES = frozenset({"secrets"})
"""Folders under `<data>` that belong to the host."""

PREFIX_SEGMENT = r"[a-z0-9][a-z0-9_-]{0,62}"
"""Lower case only, so that no two prefixes differ in case. No character needs a URL escape."""

PREFIX_SEGMENTS = 4
"""The maximum number of segments of a prefix. The router looks at no more of a path, because
Werkzeug's dispatcher takes time quadratic in their number: 5.35 ms for 2,000 segments against
2.8 µs for one (Werkzeug 3.1.9)."""

_URL_PREFIX = re.compile(rf"(?:/{PREFIX_SEGMENT}){{1,{PREFIX_SEGMENTS}}}")

RESERVED_SEGMENTS = frozenset(
    {"admin", "health", "healthz", "livez", "metrics", "readyz", "static"}
)
"""First path segments that are reserved for proxies, scrapers and probes in front of the host."""

FORWARDED_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")
"""`X-Forwarded-Prefix` of a trusted proxy, without a final slash. An empty segment is not allowed,
because a link to `//evil.test` leads to another host."""

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
"""One label of a host name. Container networks use names with an underscore."""

_HOST_PATTERN = re.compile(rf"\.?{_LABEL}(?:\.{_LABEL})*")

_HOST_AND_PORT = re.compile(r"[^:]+:\d*|\[.*\]:\d*")

_HOST_HEADER = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?"
)

MAX_PORT = 65_535


def check_tenant_name(value: str) -> str:
    """Return a valid tenant name."""
    if not TENANT_NAME.fullmatch(value):
        raise ValueError(
            "a tenant's name has 1 to 63 characters of a-z, 0-9, _ and -, and begins with a letter"
        )
    if value in RESERVED_TENANT_NAMES:
        raise ValueError(
            f"no tenant can be named {value!r}, because the folder <data>/{value} belongs to the "
            "host"
        )
    return value


def check_url_prefix(value: str) -> str:
    """Return a valid prefix, such as `/acme`."""
    if not _URL_PREFIX.fullmatch(value):
        raise ValueError(
            f"expected 1 to {PREFIX_SEGMENTS} segments, like '/acme' or '/clients/acme', without "
            "a slash at the end; a segment has 1 to 63 characters of a-z, 0-9, _ and -, and begins "
            "with a letter or digit"
        )
    first = value.split("/")[1]
    if first in RESERVED_SEGMENTS:
        raise ValueError(
            f"/{first} is reserved for proxies and probes; choose another prefix, like '/acme'"
        )
    return value


def are_nested(prefix: str, other: str) -> bool:
    """Whether two prefixes are equal, or one lies inside the other."""
    return f"{prefix}/".startswith(f"{other}/") or f"{other}/".startswith(f"{prefix}/")


def parent_prefixes(prefix: str) -> list[str]:
    """Return the prefixes above `/a/b/c`: `/a/b` and `/a`."""
    parts = prefix.split("/")
    return ["/".join(parts[:end]) for end in range(len(parts) - 1, 1, -1)]


def check_host_name(value: str) -> str:
    """Return a valid host name, IP address, or `.example.org` for a name with its subdomains."""
    if "/" in value:
        raise ValueError("expected a host name without a scheme or path, like 'shop.example.org'")
    if _HOST_AND_PORT.fullmatch(value):
        raise ValueError("expected a host name without a port, like 'shop.example.org' or '[::1]'")
    if not (_HOST_PATTERN.fullmatch(value) or _is_ipv6(value)):
        raise ValueError(
            "expected a host name, like 'shop.example.org', '.example.org' (with subdomains), "
            "'192.0.2.1' or '[::1]'"
        )
    return value


def is_host_header(value: str) -> bool:
    """Whether a `Host` header is well-formed (RFC 9110 §7.2); a port and a final dot may follow."""
    match = _HOST_HEADER.fullmatch(value)
    return match is not None and int(match[1] or 0) <= MAX_PORT


def _is_ipv6(value: str) -> bool:
    try:
        return value[:1] == "[" and value[-1:] == "]" and bool(ipaddress.IPv6Address(value[1:-1]))
    except ValueError:
        return False
