"""The grammar of tenant names, URL prefixes and host names.

Names come from tenant files, settings, the command line, and the paths and headers of requests. A
`check_…` function returns a valid name, or raises a `ValueError` that describes the expected form.
The caller adds where the invalid name was found and, unless the name is secret, the name itself.
"""

import ipaddress
import re

import idna

TENANT_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
"""A valid tenant name, which needs no escaping in the names of files, folders and cookies."""

RESERVED_TENANT_NAMES = frozenset({"secrets"})
"""Names that no tenant can have, because the host uses them for its own folders under `<data>`."""

PREFIX_SEGMENT = r"[a-z0-9][a-z0-9_-]{0,62}"
"""One segment of a URL prefix. Segments are lower-case, so that no two prefixes differ only in
case, and need no escaping in a URL."""

PREFIX_SEGMENTS = 4
"""Maximum number of segments in a URL prefix. The router ignores all further segments of a path,
because the time of Werkzeug's dispatcher is quadratic in their number: 2.8 µs for one segment, but
5.35 ms for 2,000 (Werkzeug 3.1.9)."""

_URL_PREFIX = re.compile(rf"(?:/{PREFIX_SEGMENT}){{1,{PREFIX_SEGMENTS}}}")

RESERVED_SEGMENTS = frozenset(
    {"admin", "health", "healthz", "livez", "metrics", "readyz", "static"}
)
"""First path segments that are reserved for proxies and probes, so no URL prefix can use them."""

FORWARDED_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)*")
"""A valid `X-Forwarded-Prefix` header from a trusted proxy, without a trailing slash. Empty
segments are invalid, because a link to `//evil.test` leads to another host. The segments `.` and
`..` are invalid, because browsers remove them from links and cookie paths."""

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
"""One label of a host name. Underscores are valid, because container networks use them."""

_HOST_PATTERN = re.compile(rf"\.?{_LABEL}(?:\.{_LABEL})*")

_OWN_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")

_HOST_AND_PORT = re.compile(r"[^:]+:\d*|\[.*\]:\d*")

_HOST_HEADER = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{0,5}))?"
)

_PORT = re.compile(r":[0-9]*$")

_HOST_NAME_CHARS = 253
"""Maximum length of a host name (RFC 1035 §2.3.4)."""

_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A last label that makes a browser read a host name as an IPv4 address, as in `127.1`."""

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
    """Return a valid URL prefix, such as `/acme`."""
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


def check_named_prefix(value: str) -> str:
    """Return a valid URL prefix under host names of a tenant's own: `/`, or as in `/acme`.

    Under its own names, a tenant can use all prefixes, because the host's names serve the probes.
    """
    if value != "/" and not _URL_PREFIX.fullmatch(value):
        raise ValueError(
            f"expected '/', or 1 to {PREFIX_SEGMENTS} segments, like '/shop', without a slash at "
            "the end; a segment has 1 to 63 characters of a-z, 0-9, _ and -, and begins with a "
            "letter or digit"
        )
    return value


def are_nested(prefix: str, other: str) -> bool:
    """Whether two URL prefixes are equal or nested, like `/clients` and `/clients/acme`."""
    return f"{prefix}/".startswith(f"{other}/") or f"{other}/".startswith(f"{prefix}/")


def parent_prefixes(prefix: str) -> list[str]:
    """Return the parents of a URL prefix: `/a/b` and `/a` for `/a/b/c`."""
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


def check_own_host_name(value: str) -> str:
    """Return the host name of a tenant as A-labels in lower case, without a final dot.

    Like a browser, the function maps a name with non-ASCII characters first (UTS 46).
    """
    if "*" in value or value.startswith("."):
        raise ValueError("a wildcard is not possible; list each host name, like 'shop.example.org'")
    name = _to_a_labels(value).lower().removesuffix(".")
    is_literal = is_address(name) or _NUMBER.fullmatch(name.rpartition(".")[2])
    if is_literal or name == "localhost":
        raise ValueError(
            "localhost and address literals belong to the host; expected a name, like "
            "'shop.example.org'"
        )
    if len(name) > _HOST_NAME_CHARS or not _OWN_NAME.fullmatch(name):
        raise ValueError(
            "expected a host name of at most 253 characters, without a scheme, port or path, like "
            "'shop.example.org'"
        )
    return name


def _to_a_labels(value: str) -> str:
    try:
        if value.isascii():
            for label in value.lower().split("."):
                if label.startswith("xn--"):
                    idna.decode(label)
            return value
        return idna.encode(value, uts46=True).decode("ascii")
    except UnicodeError as error:  # `idna.IDNAError` is a `UnicodeError`
        raise ValueError(f"is not a valid international host name ({error}); correct it") from None


def host_name(host: str) -> str:
    """Return the name in a `Host` header in lower case, without the port and the final dot."""
    return _PORT.sub("", host).lower().removesuffix(".")


def is_host_header(value: str) -> bool:
    """Whether a `Host` header is valid, with or without a port and a final dot (RFC 9110 §7.2)."""
    match = _HOST_HEADER.fullmatch(value)
    return match is not None and int(match[1] or 0) <= MAX_PORT


def is_address(value: str) -> bool:
    """Whether a host name is an address literal, such as `192.0.2.1` or `[::1]`."""
    try:
        return _is_ipv6(value) or bool(ipaddress.IPv4Address(value))
    except ValueError:
        return False


def _is_ipv6(value: str) -> bool:
    try:
        return value[:1] == "[" and value[-1:] == "]" and bool(ipaddress.IPv6Address(value[1:-1]))
    except ValueError:
        return False
