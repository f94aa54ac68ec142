"""Finds cookie names that browsers reject under a tenant's URL prefix."""

from collections.abc import Iterator, Mapping
from typing import Any

_NEVER = "__host-"
"""A browser keeps a cookie with this prefix only with `Path=/` (RFC 6265bis §4.1.3.2)."""

_ON_HTTPS = ("__secure-", "__http-")
"""A browser keeps a cookie with one of these prefixes only with `Secure`."""


def find_lost_cookies(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each configuration key whose cookie name makes browsers reject the cookie, and why.

    Browsers compare the prefixes of cookie names without regard to case.
    """
    for key, value in config.items():
        # An app can add keys of any type to its configuration.
        if not (type(key) is str and key.endswith("COOKIE_NAME") and isinstance(value, str)):
            continue
        if value.lower().startswith(_NEVER):
            yield (
                key,
                (
                    f"found {value!r}; browsers keep such a cookie only at the path /, not under a "
                    "URL prefix; choose another name"
                ),
            )
        elif value.lower().startswith(_ON_HTTPS) and not _is_secure(key, config):
            yield (
                key,
                (
                    f"found {value!r}; browsers keep such a cookie only if it is secure; set "
                    f"{key.removesuffix('NAME')}SECURE = True, or choose another name"
                ),
            )


def _is_secure(key: str, config: Mapping[str, Any]) -> bool:
    """Whether a cookie is `Secure`, judging by the usual names of keys."""
    if key not in ("SESSION_COOKIE_NAME", "REMEMBER_COOKIE_NAME"):
        return True  # Tenantry does not know this extension's keys
    return bool(config.get(f"{key.removesuffix('NAME')}SECURE"))
