"""What `OIDC` of a tenant file must be, and which addresses keys may be read from."""

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tenantry.tenants.problems import Found

OWN_CLAIMS = frozenset({"iss", "aud", "exp", "nbf", "iat"})
"""Are checked whatever `claims` says."""

_URL = re.compile(r"[\x21-\x7e]+")

ClaimValue = str | int | float | bool


@dataclass(frozen=True, slots=True)
class OpenId:
    """The content of `OIDC`. Hashable."""

    issuer: str
    audiences: tuple[str, ...]
    jwks_uri: str | None = field(default=None, repr=False)
    """Its query may hold a secret."""
    claims: tuple[tuple[str, tuple[ClaimValue, ...]], ...] = ()
    """Claim → the values of which one must be there."""

    def plain(self) -> dict[str, Any]:
        """Return it in a tenant file's form."""
        given: dict[str, Any] = {"issuer": self.issuer, "audience": list(self.audiences)}
        if self.jwks_uri is not None:
            given["jwks_uri"] = self.jwks_uri
        if self.claims:
            given["claims"] = {name: list(values) for name, values in self.claims}
        return given


def parse_openid(value: object) -> OpenId | None:
    """Return where tokens of a tenant come from; None where none are taken."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004 - pydantic's
            "expected a dict, like {'issuer': 'https://login.example.org', 'audience': 'shop'}"
        )
    found = Found()
    found.take_unknown(value, ("issuer", "audience", "jwks_uri", "claims"))
    for key in ("issuer", "audience"):
        if value.get(key) is None:
            found.problems.append(("", f"has no {key!r}; without it tokens of others would do"))
    issuer = found.take_item(value, "issuer", _issuer)
    audiences = found.take_item(value, "audience", _audiences)
    jwks_uri = found.take_item(value, "jwks_uri", check_url)
    claims = found.take_item(value, "claims", _claims)
    found.end()
    return OpenId(issuer or "", audiences or (), jwks_uri, claims or ())


def check_url(value: object, *, is_local_allowed: bool = True) -> str:
    """Return an address that keys may be read from: https, or http on this machine."""
    expected = "expected a URL with https (or http on the loopback), like 'https://example.org'"
    if not isinstance(value, str) or not _URL.fullmatch(value):
        raise ValueError(expected)
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(expected) from None
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
    if not host or not is_safe or (is_loopback(host) and not is_local_allowed):
        raise ValueError(expected)
    if "@" in parts.netloc or parts.fragment:
        raise ValueError("expected a URL without a user name, a password and a fragment")
    return value


def is_loopback(host: str | None) -> bool:
    """Whether a host's name means this machine."""
    if host == "localhost":
        return True
    try:
        return host is not None and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _issuer(value: object) -> str:
    url = check_url(value)
    if "?" in url:  # OpenID Connect Discovery §3
        raise ValueError("expected a URL without a query: exactly what tokens have as 'iss'")
    return url


def _audiences(value: object) -> tuple[str, ...]:
    listed = (value,) if isinstance(value, str) else value
    if isinstance(listed, list | tuple) and listed:
        texts = tuple(one for one in listed if isinstance(one, str) and one)
        if len(texts) == len(listed):
            return texts
    raise ValueError("expected what tokens for this tenant have as 'aud': a string, or a list")


def _claims(value: object) -> tuple[tuple[str, tuple[ClaimValue, ...]], ...]:
    if not isinstance(value, dict):
        raise ValueError("expected a dict of claim → value, like {'role': 'shop'}")  # noqa: TRY004 - pydantic's
    found = Found()
    parsed = [(name, found.take(f"[{name!r}]", _claim, name, item)) for name, item in value.items()]
    found.end()
    return tuple((name, values or ()) for name, values in parsed)


def _claim(name: object, value: object) -> tuple[ClaimValue, ...]:
    if not isinstance(name, str):
        raise ValueError(f"found {type(name).__name__}; expected a claim's name")  # noqa: TRY004 - pydantic's
    if name in OWN_CLAIMS:
        raise ValueError("is checked anyway; remove it (see 'issuer' and 'audience')")
    listed = value if isinstance(value, list | tuple) else (value,)
    if not listed or not all(isinstance(one, str | int | float) for one in listed):
        raise ValueError("expected a string, a number, True or False, or a list of such")
    return tuple(listed)
