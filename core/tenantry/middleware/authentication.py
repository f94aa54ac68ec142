"""Authentication: only clients that a tenant's `CLIENTS` or `OIDC` key allows reach the app.

This head check decides before the host calls the app or reads a request body.

- `X-API-Key` takes precedence over `Authorization`. If a request has both headers, the app receives
  `Authorization` unchanged, unless that header also contains a client key.
- The check removes the key from the request, so that no app, extension or error report can store or
  log a key. In place of the key, the WSGI environ contains the client's name and a token's claims.
- The check refuses CORS preflight requests, which never contain a key, because the app must not run
  for unknown clients. A proxy in front of the host can answer CORS preflight requests.
"""

import hmac
import logging
import re
import time
from collections.abc import Callable, Mapping
from contextvars import copy_context
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from tenantry.http.environ import CLIENT, REQUEST_ID
from tenantry.http.problem import INTERNAL_ERROR, ProblemResponse, Refusal
from tenantry.middleware.failed_attempts import FailedAttempts
from tenantry.tenants.clients import Client, Clients, key_digest

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

CLAIMS = "tenantry.claims"
"""WSGI environ key for the claims of a verified token."""

_logger = logging.getLogger(__name__)

_BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE)
_API_KEY = "HTTP_X_API_KEY"
_AUTHORIZATION = "HTTP_AUTHORIZATION"

TokenClaims = Mapping[str, Any]
Verify = Callable[[str], TokenClaims]
"""A function that returns the claims of a token, including `sub`, or raises a `TokenRefusedError`
or an `IssuerDownError`."""
EndpointOf = Callable[["WSGIEnvironment"], str | None]
"""A function that returns the endpoint of a request, as written in `BLUEPRINTS`. The result is ""
if the route belongs to no endpoint, and None if no route matches (the app answers 404 or 405)."""


class TokenRefusedError(Exception):
    """A token is not accepted. The message is for the log and contains no part of the token.

    `client` is the token's subject if the signature is valid. `claimed` is the subject that an
    unverified token claims to have.
    """

    def __init__(self, reason: str, *, client: str = "", claimed: str = "") -> None:
        self.client = client
        self.claimed = claimed
        super().__init__(reason)


class IssuerDownError(Exception):
    """Tokens cannot be verified yet, because the issuer's keys are not known."""

    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(retry_after_s)


class _ClientRefusedError(Exception):
    def __init__(
        self, answer: ProblemResponse, reason: str, *, client: str = "", claimed: str = ""
    ) -> None:
        self.answer = answer
        self.reason = reason
        self.names = {"client": client, "claimed_client": claimed}
        super().__init__(reason)


class Authentication:
    """Head check that admits clients with a known key or a valid token. Thread-safe.

    Each refusal is logged with the client's name if it is known, and never with the key. Above the
    limit of `FailedAttempts`, a 429 replaces the 401, and refusals are not logged.

    Args:
        tenant: the tenant's name, for the log.
        realm: the realm of the `WWW-Authenticate` challenge: the tenant's URL prefix, which clients
            already know.
        clients: the tenant's `CLIENTS`, or None.
        verify: verifies a token; None if the tenant accepts no tokens.
        endpoint_of: returns the endpoint of a request; called only for clients that are limited to
            some endpoints.
        attempts: counts the requests without a valid key.
        clock: returns seconds since the epoch.
    """

    def __init__(
        self,
        *,
        tenant: str,
        realm: str,
        clients: Clients | None,
        verify: Verify | None,
        endpoint_of: EndpointOf,
        attempts: FailedAttempts,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tenant = tenant
        self._verify = verify
        self._endpoint_of = endpoint_of
        self._attempts = attempts
        self._clock = clock
        listed = () if clients is None else clients.all
        self._keys = tuple((digest, one) for one in listed for digest in one.digests)
        # The app's own URL converters run when the host looks up the endpoint of a URL.
        self.is_quick = verify is None and all(one.endpoints is None for one in listed)
        challenge = f'Bearer realm="{realm}"'
        self._no_key = _unauthorized(
            "A key is required: Authorization: Bearer KEY, or X-API-Key: KEY.", challenge
        )
        refused = f'{challenge}, error="invalid_token"'
        self._unknown = _unauthorized("This key or token is not valid here.", refused)
        self._expired = _unauthorized("This key has expired.", refused)
        self._not_allowed = ProblemResponse(
            HTTPStatus.FORBIDDEN,
            "This key does not allow this endpoint or this method.",
            authenticate=f'{challenge}, error="insufficient_scope"',  # RFC 6750 §3.1
        )

    def is_stranger(self, environ: "WSGIEnvironment") -> bool:
        """Whether `refuse` will refuse a request because of its missing or unknown key.

        The method changes nothing, waits for nothing, and runs no code of the app. For a request
        with a possible token, the result is False.
        """
        key = environ.get(_API_KEY)
        if not key:
            bearer = _BEARER.fullmatch(environ.get(_AUTHORIZATION, ""))
            if bearer is None:
                return True
            if self._verify is not None:
                return False
            key = bearer[1]
        return self._known(key) is None

    def refuse(self, environ: "WSGIEnvironment") -> Refusal | None:
        """Return the response to a client that may not send the request, or None.

        The method removes the key from the environ, and sets the name of an admitted client.
        """
        for name in (CLIENT, CLAIMS):
            environ.pop(name, None)
        try:
            environ[CLIENT] = self._client(environ)
        except _ClientRefusedError as refused:
            if refused.answer.status is HTTPStatus.UNAUTHORIZED:
                wait_s = self._attempts.note(self._tenant, environ.get("REMOTE_ADDR", ""))
                if wait_s:
                    return _too_many(wait_s), []
            self._log(environ, refused)
            return refused.answer, []
        return None

    def _client(self, environ: "WSGIEnvironment") -> str:
        presented, is_token_possible = self._take(environ)
        client = self._known(presented)
        if client is not None:
            self._check(client, environ)
            return client.name
        if self._verify is None or not is_token_possible:
            raise _ClientRefusedError(self._unknown, "the key is unknown")
        return self._subject(presented, self._verify, environ)

    def _take(self, environ: "WSGIEnvironment") -> tuple[str, bool]:
        """Remove the key from the environ; return the key, and whether it can be a token."""
        bearer = _BEARER.fullmatch(environ.get(_AUTHORIZATION, ""))
        if key := environ.pop(_API_KEY, ""):
            if bearer and self._known(bearer[1]) is not None:
                del environ[_AUTHORIZATION]  # the client sent the key twice
            return key, False
        if bearer is None:
            is_there = bool(environ.get(_AUTHORIZATION))
            reason = "Authorization is not 'Bearer KEY'" if is_there else "no key was sent"
            raise _ClientRefusedError(self._no_key, reason)
        del environ[_AUTHORIZATION]
        return bearer[1], True

    def _known(self, presented: str) -> Client | None:
        """Return the client with the key `presented`, or None, in constant time."""
        digest = key_digest(presented.encode("latin-1", "replace"))  # PEP 3333: headers are latin-1
        found = None
        for stored, client in self._keys:
            if hmac.compare_digest(stored, digest):
                found = client
        return found

    def _check(self, client: Client, environ: "WSGIEnvironment") -> None:
        if client.expires is not None and self._clock() >= client.expires.timestamp():
            raise _ClientRefusedError(self._expired, "the key has expired", client=client.name)
        method = environ["REQUEST_METHOD"]
        allowing = {method, "GET"} if method == "HEAD" else {method}
        if client.methods is not None and not allowing & set(client.methods):
            raise _ClientRefusedError(
                self._not_allowed, "the client may not use this method", client=client.name
            )
        if client.endpoints is not None:
            endpoint = self._endpoint(environ)
            if endpoint is not None and endpoint not in client.endpoints:
                raise _ClientRefusedError(
                    self._not_allowed, "the client may not use this endpoint", client=client.name
                )

    def _endpoint(self, environ: "WSGIEnvironment") -> str | None:
        try:
            # In a copied context, a context variable that the app sets does not stay on the thread.
            return copy_context().run(self._endpoint_of, environ)
        except BaseException:  # a URL converter of the app can raise anything
            _logger.exception("endpoint.match_failed", extra=self._facts(environ))
            raise _ClientRefusedError(INTERNAL_ERROR, "the app failed to match the URL") from None

    def _subject(self, token: str, verify: Verify, environ: "WSGIEnvironment") -> str:
        try:
            claims = verify(token)
        except TokenRefusedError as error:
            client = f"oidc:{error.client}" if error.client else ""
            raise _ClientRefusedError(
                self._unknown, str(error), client=client, claimed=error.claimed
            ) from None
        except IssuerDownError as error:
            problem = _keys_missing(error.retry_after_s)
            raise _ClientRefusedError(problem, "the issuer is down") from None
        environ[CLAIMS] = claims
        return f"oidc:{claims['sub']}"

    def _log(self, environ: "WSGIEnvironment", refused: _ClientRefusedError) -> None:
        facts = {"status": refused.answer.status.value, "reason": refused.reason}
        facts |= {key: name for key, name in refused.names.items() if name}
        _logger.warning("client.refused", extra=self._facts(environ) | facts)

    def _facts(self, environ: "WSGIEnvironment") -> dict[str, Any]:
        """Return log fields of a request, because the server logs outside the request's context."""
        return {
            "tenant": self._tenant,
            "request_id": environ.get(REQUEST_ID, ""),
            "method": environ["REQUEST_METHOD"],
            "path": environ.get("PATH_INFO"),
        }


def _unauthorized(detail: str, challenge: str) -> ProblemResponse:
    return ProblemResponse(HTTPStatus.UNAUTHORIZED, detail, authenticate=challenge)


def _keys_missing(retry_after_s: int) -> ProblemResponse:
    return ProblemResponse(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Tokens cannot be checked right now.",
        retry_after_s=retry_after_s,
    )


def _too_many(retry_after_s: int) -> ProblemResponse:
    return ProblemResponse(
        HTTPStatus.TOO_MANY_REQUESTS,
        "Too many requests from this address had no valid key. Send a valid key, or wait.",
        retry_after_s=retry_after_s,
    )
