"""OIDC: the verification of tokens from an OpenID Connect issuer.

The library joserfc, by the author of Authlib, verifies the signatures. A process imports joserfc
only if a tenant sets `OIDC`, because the import takes 10 MiB and 0.1 s.

The verification follows RFC 8725. The host, not the token, determines the allowed algorithms. A key
serves only its declared purpose. The issuer, the audience and the times of a token are always
checked.
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
from joserfc.registry import Header
from joserfc.util import urlsafe_b64decode

from tenantry.middleware.authentication import IssuerDownError, TokenClaims, TokenRefusedError
from tenantry.middleware.issuer import Issuer, IssuerError, read_key_set
from tenantry.tenants.openid import ClaimValue, OpenId

LEEWAY_S = 60
"""Maximum difference in seconds between the issuer's clock and this machine's clock."""

ALGORITHMS = frozenset({
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
    "ES256", "ES384", "ES512", "EdDSA", "Ed25519",
})  # fmt: skip
"""Allowed signature algorithms, which all use a key pair. The algorithm `none` uses no key, and
`HS…` would use the issuer's public key, which everybody knows, as a shared secret."""

RSA_BITS = 2048
"""Minimum size of an RSA key in bits (RFC 7518 §3.3)."""

SUBJECT_CHARACTERS = 255
"""Maximum number of characters of the claim `sub` (OpenID Connect Core §2)."""

_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
"""Accepted values of a token's `typ` header. A token of another type, such as a logout token, gives
no access, even if the same key has signed the token (RFC 8725 §3.11)."""

_KINDS = frozenset({"RSA", "EC", "OKP"})

_SIGNING_CURVES = frozenset({"Ed25519", "Ed448"})
"""Curves of OKP keys that can sign (RFC 8037 §3.1). Keys with other curves encrypt."""

KEYS_TRIED = 4
"""Maximum number of keys that are tried for one token, because a verification takes 0.1 ms. Key IDs
should be unique, but RFC 7517 §4.5 does not require it."""

WORD_CLAIMS = frozenset({"scope", "scp"})
"""Claims whose text is a list of words, separated by spaces (RFC 8693 §4.2; `scp` is Microsoft's
name). The text of any other claim is one value."""


class _UnfitError(ValueError):
    """A token fails the verification. The message contains no part of the token."""


class TokenCheck:
    """Verifies one tenant's tokens with the keys of the issuer. Thread-safe. Needs no closing.

    Args:
        openid: the tenant's `OIDC`.
        tenant: the tenant's name, for the log.
        issuer: returns the issuer's keys; if None, the keys are fetched over the network.
        clock: returns seconds since the epoch.
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

    def __call__(self, token: str) -> TokenClaims:
        """Return the claims of a token, including `sub`.

        Raises:
            TokenRefusedError: the token is not valid for this tenant.
            IssuerDownError: no key is known.
        """
        try:
            decoded = jwt.decode(token, self._key, registry=self._registry)
        except IssuerDownError:
            raise
        except Exception as error:  # noqa: BLE001 - a client can send any bytes
            raise TokenRefusedError(_reason(error), claimed=claimed_subject(token)) from None
        claims = decoded.claims
        subject = claims.get("sub")
        name = subject[:SUBJECT_CHARACTERS] if isinstance(subject, str) else ""
        try:
            self._check(decoded.header, claims)
        except Exception as error:  # noqa: BLE001 - a signed token can contain anything
            raise TokenRefusedError(_reason(error), client=name) from None
        return claims

    def _key(self, token: GuestProtocol) -> Key:
        """Return the key that a token names; for an unknown key, fetch the issuer's keys again.

        joserfc calls this method after checking the algorithm of the token.
        """
        header = token.headers()
        kid = header.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise _UnfitError("its kid is not a string")
        algorithm = self._registry.get_alg(header["alg"])
        keys = self._issuer.keys(lambda known: bool(_find(known, kid, algorithm)))
        if keys is None:
            raise IssuerDownError(self._issuer.retry_after_s())
        found = _find(keys, kid, algorithm)
        if not found:
            raise _UnfitError("the issuer has no such key")
        if len(found) == 1 or not isinstance(token, jws.CompactSignature):
            return found[0]
        verifying = (
            key for key in found if jws.validate_compact(token, key, registry=self._registry)
        )
        return next(verifying, found[0])

    def _check(self, header: dict[str, Any], claims: dict[str, Any]) -> None:
        if str(header.get("typ", "JWT")).lower() not in _TYPES:
            raise _UnfitError("its typ is not that of an access token")
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
            if not _has(name, find_claim(claims, name), values):
                raise _UnfitError(f"its claim {name!r} does not have a required value")


class _Registry(JWSRegistry):
    """A joserfc registry that allows only `ALGORITHMS`, and does not warn about `EdDSA`."""

    max_header_length = 2048  # some issuers add a thumbprint or a certificate URL to the header

    def check_header(self, header: Header) -> None:
        """Refuse the header `crit`, even if empty, because `crit` names unknown extensions."""
        if "crit" in header:
            raise _UnfitError("its crit names an extension that is not supported")
        super().check_header(header)

    def get_alg(self, name: str) -> JWSAlgModel:
        if name not in ALGORITHMS:
            raise _UnfitError("its algorithm is not allowed")
        return self.algorithms[name]


def parse_keys(listed: list[dict[str, Any]]) -> KeySet:
    """Return the keys of a key set that can verify tokens.

    Raises:
        IssuerError: the key set has no key that can verify tokens.
    """
    keys = [key for one in listed if (key := _parsed(one)) is not None]
    if not keys:
        raise IssuerError("the issuer's set has no public key that can verify tokens")
    return KeySet(keys)


def _parsed(key: dict[str, Any]) -> Key | None:
    try:
        if key.get("kty") not in _KINDS or key.get("use", "sig") != "sig":
            return None
        if "verify" not in key.get("key_ops", ("verify",)):
            return None
        if key["kty"] == "OKP" and key["crv"] not in _SIGNING_CURVES:
            return None
        if key["kty"] == "RSA" and _bits(key["n"]) < RSA_BITS:
            return None
        return JWKRegistry.import_key(key)
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        return None  # RFC 7517 §5 asks to ignore keys that are not understood


def _bits(number: str) -> int:
    return int.from_bytes(urlsafe_b64decode(number.encode())).bit_length()


def _find(keys: KeySet, kid: str | None, algorithm: JWSAlgModel) -> list[Key]:
    """Return the keys that can have signed a token.

    The `kty`, `crv`, `alg` and `use` of a key must match the algorithm of the token (RFC 7517 §4).
    A token without a key ID is accepted only if the issuer has exactly one matching key (OpenID
    Connect Core §10.1).
    """
    fitting = [key for key in keys.keys if _fits(key, algorithm)]
    if kid is None:
        return fitting if len(fitting) == 1 else []
    return [key for key in fitting if key.kid == kid][:KEYS_TRIED]


def _fits(key: Key, algorithm: JWSAlgModel) -> bool:
    try:
        algorithm.check_key(key)
    except JoseError:
        return False
    return True


def find_claim(claims: object, name: str) -> object:
    """Return the claim of a name or of a dotted path (`realm_access.roles`), or None.

    A claim with exactly that name wins, because names such as `https://example.org/role` have dots.
    """
    if not isinstance(claims, dict):
        return None
    if name in claims:
        return claims[name]
    dots = (index for index, character in enumerate(name) if character == ".")
    found = (find_claim(claims.get(name[:dot]), name[dot + 1 :]) for dot in dots)
    return next((value for value in found if value is not None), None)


def _has(name: str, found: object, wanted: tuple[ClaimValue, ...]) -> bool:
    """Whether a claim equals or contains a wanted value of the same type (1 is not True).

    For a claim that is a list of words, an expected text of several words requires all these words.
    """
    listed = found if isinstance(found, list) else [found]
    if name.rpartition(".")[2] in WORD_CLAIMS:
        words = {word for text in listed if isinstance(text, str) for word in text.split()}
        return any(isinstance(value, str) and words.issuperset(value.split()) for value in wanted)
    return any(type(one) is type(value) and one == value for one in listed for value in wanted)


def _reason(error: Exception) -> str:
    """Return the reason for a refusal, without joserfc's own texts, which can quote the token."""
    if isinstance(error, JoseError):
        claim = getattr(error, "claim", "")
        return f"{error.error} {claim}".strip()
    return str(error) if isinstance(error, _UnfitError) else f"malformed ({type(error).__name__})"


def claimed_subject(token: str) -> str:
    """Return the subject that an unverified token claims to have, or "" if it has none."""
    try:
        subject = json.loads(jws.extract_compact(token.encode()).payload)["sub"]
        return subject[:SUBJECT_CHARACTERS] if isinstance(subject, str) else ""
    except Exception:  # noqa: BLE001 - a client can send any bytes
        return ""
