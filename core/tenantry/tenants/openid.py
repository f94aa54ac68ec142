"""The key `OIDC` of a tenant file: the issuer of tokens, and the URL of its public keys."""

import ipaddress
import re
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from tenantry.tenants.problems import ProblemCollector

REGISTERED_CLAIMS = frozenset({"iss", "aud", "exp", "nbf", "iat"})
"""Claims that the host always checks, so that `claims` in a tenant file cannot contain them."""

_URL = re.compile(r"[\x21-\x7e]+")

ClaimValue = str | int | float | bool


@dataclass(frozen=True, slots=True)
class OpenId:
    """The content of `OIDC`. Hashable."""

    issuer: str
    audiences: tuple[str, ...]
    # The query of `jwks_uri` can contain a secret.
    jwks_uri: str | None = field(default=None, repr=False)
    claims: tuple[tuple[str, tuple[ClaimValue, ...]], ...] = ()
    """The claims that a token must have, as pairs of a name and the accepted values.

    The name can be a path, such as `realm_access.roles`.
    """

    def to_config(self) -> dict[str, Any]:
        """Return the settings as written in a tenant file under `OIDC`."""
        given: dict[str, Any] = {"issuer": self.issuer, "audience": list(self.audiences)}
        if self.jwks_uri is not None:
            given["jwks_uri"] = self.jwks_uri
        if self.claims:
            given["claims"] = {name: list(values) for name, values in self.claims}
        return given


def parse_openid(value: object) -> OpenId | None:
    """Return the parsed value of `OIDC`, or None if the tenant accepts no tokens."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004 - pydantic expects ValueError
            "expected a dict, like {'issuer': 'https://login.example.org', 'audience': 'shop'}"
        )
    problems = ProblemCollector()
    problems.reject_unknown(value, ("issuer", "audience", "jwks_uri", "claims"))
    for key in ("issuer", "audience"):
        if value.get(key) is None:
            problems.add("", f"has no {key!r}; without it, tokens for others would be accepted")
    openid = OpenId(
        issuer=problems.parse_item(value, "issuer", _parse_issuer) or "",
        audiences=problems.parse_item(value, "audience", _parse_audiences) or (),
        jwks_uri=problems.parse_item(value, "jwks_uri", check_url),
        claims=problems.parse_item(value, "claims", _parse_claims) or (),
    )
    problems.raise_if_any()
    return openid


def check_url(value: object, *, is_local_allowed: bool = True) -> str:
    """Return a valid URL for an issuer: `https`, or `http` on the local machine."""
    expected = "expected an https URL (or http on the loopback), like 'https://example.org'"
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
        raise ValueError("expected a URL without a user name, password or fragment")
    return value


def is_loopback(host: str | None) -> bool:
    """Whether a host name refers to the local machine."""
    if host == "localhost":
        return True
    try:
        return host is not None and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parse_issuer(value: object) -> str:
    url = check_url(value)
    if "?" in url:  # OpenID Connect Discovery §3 forbids a query
        raise ValueError("expected a URL without a query, exactly as tokens have it in 'iss'")
    return url


def _parse_audiences(value: object) -> tuple[str, ...]:
    listed = (value,) if isinstance(value, str) else value
    if isinstance(listed, list | tuple) and listed:
        texts = tuple(item for item in listed if isinstance(item, str) and item)
        if len(texts) == len(listed):
            return texts
    raise ValueError("expected a string or a list of strings, as tokens have it in 'aud'")


def _parse_claims(value: object) -> tuple[tuple[str, tuple[ClaimValue, ...]], ...]:
    if not isinstance(value, dict):
        raise ValueError("expected a dict of claim → value, like {'role': 'shop'}")  # noqa: TRY004 - pydantic expects ValueError
    problems = ProblemCollector()
    parsed = [
        (name, problems.parse(f"[{name!r}]", partial(_parse_claim, name), item))
        for name, item in value.items()
    ]
    problems.raise_if_any()
    return tuple((name, values or ()) for name, values in parsed)


def _parse_claim(name: object, value: object) -> tuple[ClaimValue, ...]:
    if not isinstance(name, str):
        raise ValueError(f"found {type(name).__name__}; expected the name of a claim")  # noqa: TRY004 - pydantic expects ValueError
    if not all(name.split(".")):
        raise ValueError("expected the name of a claim, or a path like 'realm_access.roles'")
    if name in REGISTERED_CLAIMS:
        raise ValueError("is always checked; remove it (see 'issuer' and 'audience')")
    listed = value if isinstance(value, list | tuple) else (value,)
    if not listed or not all(isinstance(item, str | int | float) for item in listed):
        raise ValueError("expected a string, a number, True or False, or a list of them")
    if not all(str(item).strip() for item in listed):
        raise ValueError("has an empty value, which any token would have; remove it")
    return tuple(listed)
