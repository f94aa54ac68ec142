"""Tokens of an issuer: what must be true of one that lets its bearer in.

The signatures are joserfc's, of Authlib's author: it is that library's part for tokens alone, kept
and typed, without its clients and servers. Importing it costs 10 MiB and 0.1 s, so only a process
with a tenant that has `OIDC` does.

The rules are RFC 8725's: the algorithms are ours, not the token's; each key serves what it is made
for; issuer, audience and times are always checked.
"""

import json
import time
from collections.abc import Callable
from typing import Any

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwa import JWSAlgModel
from joserfc.jwk import GuestProtocol, JWKRegistry, Key, KeySet
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64decode

from tenantry.middleware.authentication import Claims, IssuerDownError, TokenRefusedError
from tenantry.middleware.issuer import Issuer, IssuerError, read_key_set
from tenantry.tenants.openid import ClaimValue, OpenId

LEEWAY_S = 60
"""How far the issuer's clock and ours may differ."""

ALGORITHMS = frozenset({
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
    "ES256", "ES384", "ES512", "EdDSA", "Ed25519",
})  # fmt: skip
"""With a public and a private key. `none` has no key; `HS…` would take a public key, which
everybody has, for a shared secret."""

RSA_BITS = 2048
"""Of an RSA key, at least (RFC 7518 §3.3)."""

SUBJECT_CHARACTERS = 255
"""Of a `sub` (OpenID Connect Core §2)."""

_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
"""A logout token, signed by the same key, is no ticket (RFC 8725 §3.11)."""

_KINDS = frozenset({"RSA", "EC", "OKP"})


class _UnfitError(ValueError):
    """A token that is refused by a rule of ours; the text holds nothing of it."""


class TokenCheck:
    """Checks tokens for one tenant against its issuer's keys. Thread-safe; needs no closing.

    Args:
        openid: what the tenant file says.
        tenant: its name, for the log.
        issuer: its keys; read over the network when None.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        openid: OpenId,
        tenant: str,
        issuer: Issuer[KeySet] | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._openid = openid
        self._issuer = issuer or Issuer(lambda: parse_keys(read_key_set(openid)), tenant)
        self._clock = clock
        self._registry = _Registry(algorithms=ALGORITHMS, strict_check_header=False)

    def __call__(self, token: str) -> Claims:
        """Return the claims of a token, `sub` among them.

        Raises:
            TokenRefusedError: it lets nobody in.
            IssuerDownError: nothing can be said, for no key is known.
        """
        try:
            decoded = jwt.decode(token, self._key, registry=self._registry)
        except IssuerDownError:
            raise
        except Exception as error:  # noqa: BLE001 - strangers' bytes: whatever they cause is no 500
            raise TokenRefusedError(_reason(error), claimed=claimed_subject(token)) from None
        claims = decoded.claims
        subject = claims.get("sub")
        name = subject[:SUBJECT_CHARACTERS] if isinstance(subject, str) else ""
        try:
            self._check(decoded.header, claims)
        except Exception as error:  # noqa: BLE001 - a signed token may hold anything
            raise TokenRefusedError(_reason(error), client=name) from None
        return claims

    def _key(self, token: GuestProtocol) -> Key:
        """Return the key that a token names; asks the issuer again where it is none we know.

        joserfc has checked the algorithm before it asks.
        """
        header = token.headers()
        kid = header.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise _UnfitError("the kid is no text")
        keys = self._issuer.keys(lambda known: _find(known, kid, header["alg"]) is not None)
        if keys is None:
            raise IssuerDownError(self._issuer.retry_after_s())
        key = _find(keys, kid, header["alg"])
        if key is None:
            raise _UnfitError("the issuer has no such key")
        return key

    def _check(self, header: dict[str, Any], claims: dict[str, Any]) -> None:
        if str(header.get("typ", "JWT")).lower() not in _TYPES:
            raise _UnfitError("its typ is not that of a ticket")
        registry = jwt.JWTClaimsRegistry(
            now=int(self._clock()),
            leeway=LEEWAY_S,
            iss={"essential": True, "value": self._openid.issuer},
            aud={"essential": True, "values": list(self._openid.audiences)},
            exp={"essential": True},
            sub={"essential": True},
        )
        registry.validate(claims)
        if len(claims["sub"]) > SUBJECT_CHARACTERS:
            raise _UnfitError("its sub is too long")
        if not claims["sub"].isprintable():
            raise _UnfitError("its sub has control characters")
        for name, values in self._openid.claims:
            if not _has(claims.get(name), values):
                raise _UnfitError(f"it has not the claim {name!r} that is asked for")


class _Registry(JWSRegistry):
    """joserfc's, with our algorithms only, and without its warning about the name `EdDSA`."""

    max_header_length = 2048  # some issuers put a thumbprint or a certificate's URL there

    def get_alg(self, name: str) -> JWSAlgModel:
        if name not in ALGORITHMS:
            raise _UnfitError("its algorithm is not allowed")
        return self.algorithms[name]


def parse_keys(listed: list[dict[str, Any]]) -> KeySet:
    """Return the keys of a set that can verify; others in it are for something else.

    Raises:
        IssuerError: there is none.
    """
    keys = [key for one in listed if (key := _parsed(one)) is not None]
    if not keys:
        raise IssuerError("the issuer's set has no public key that can verify tokens")
    return KeySet(keys)


def _parsed(key: dict[str, Any]) -> Key | None:
    try:
        if key.get("kty") not in _KINDS or key.get("use", "sig") != "sig":
            return None
        if key["kty"] == "RSA" and _bits(key["n"]) < RSA_BITS:
            return None
        return JWKRegistry.import_key(key)
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        return None  # RFC 7517 §5: one that is not understood does not spoil the others


def _bits(number: str) -> int:
    return int.from_bytes(urlsafe_b64decode(number.encode())).bit_length()


def _find(keys: KeySet, kid: str | None, algorithm: str) -> Key | None:
    """Return the key of that id; without an id the only one that there is."""
    if kid is None:
        return keys.keys[0] if len(keys.keys) == 1 else None
    named = [key for key in keys.keys if key.kid == kid]
    return next((key for key in named if key.get("alg", algorithm) == algorithm), None)


def _has(found: object, wanted: tuple[ClaimValue, ...]) -> bool:
    """Whether a claim is one of the values, or a list with one of them; 1 is not True."""
    listed = found if isinstance(found, list) else [found]
    return any(type(one) is type(value) and one == value for one in listed for value in wanted)


def _reason(error: Exception) -> str:
    """Return why; joserfc's texts can repeat what stands in a token, so only their kind."""
    if isinstance(error, JoseError):
        claim = getattr(error, "claim", "")
        return f"{error.error} {claim}".strip()
    return str(error) if isinstance(error, _UnfitError) else f"malformed ({type(error).__name__})"


def claimed_subject(token: str) -> str:
    """Return whose a token says it is, which nobody has verified; "" where it says nothing."""
    try:
        subject = json.loads(jws.extract_compact(token.encode()).payload)["sub"]
        return subject[:SUBJECT_CHARACTERS] if isinstance(subject, str) else ""
    except Exception:  # noqa: BLE001 - strangers' bytes
        return ""
