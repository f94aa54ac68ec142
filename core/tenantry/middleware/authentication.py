"""Only the group's clients get in: the WSGI layer of one tenant that asks who calls.

It stands before the app and before anybody reads a body. It knows WSGI, not Flask, and keys, not
tokens: what a token is worth, and which endpoint a URL belongs to, it is told.

The decisions in it:
- `X-API-Key` comes first: with it in a request, `Authorization` is the app's own and passes.
- The header that let a request in goes no further, so that no app, extension or error report can
  keep or log a key. The app finds the client's name, and a token's claims, in the environ.
- A browser's preflight (`OPTIONS` of another origin) carries no key and is refused as anything
  without one: letting it pass would run the app for strangers. A proxy in front can answer it.
"""

import hmac
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from structlog.contextvars import bind_contextvars

from tenantry.http.environ import CLIENT
from tenantry.http.problem import ProblemResponse
from tenantry.tenants.clients import Client, Clients, key_digest

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

CLAIMS = "tenantry.claims"
"""Key of the WSGI environ under which a verified token's claims stand."""

_logger = logging.getLogger(__name__)

_BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE)
_API_KEY = "HTTP_X_API_KEY"
_AUTHORIZATION = "HTTP_AUTHORIZATION"

Claims = Mapping[str, Any]
Verify = Callable[[str], Claims]
"""Returns the claims of a token, `sub` among them, or raises one of the two below."""
EndpointOf = Callable[["WSGIEnvironment"], str | None]
"""The endpoint, as it stands in `BLUEPRINTS`, that a request is for; "" where the app has a rule
for it that belongs to none of them; None where it has none, and will answer 404 or 405."""


class TokenRefusedError(Exception):
    """A token that lets nobody in. The text is for the log and holds nothing of the token.

    `client` is whose it is, where the issuer's signature says so; `claimed` where it does not.
    """

    def __init__(self, reason: str, *, client: str = "", claimed: str = "") -> None:
        self.client = client
        self.claimed = claimed
        super().__init__(reason)


class IssuerDownError(Exception):
    """No token can be told from a false one now: the issuer has not told its keys yet."""

    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(retry_after_s)


class _Refusal(Exception):  # noqa: N818 - an answer, carried to the one place that gives it
    def __init__(
        self, answer: ProblemResponse, reason: str, *, client: str = "", claimed: str = ""
    ) -> None:
        self.answer = answer
        self.reason = reason
        self.names = {"client": client, "claimed_client": claimed}
        super().__init__(reason)


class Authentication:
    """Lets in who has a key of `clients`, or a token that `verify` takes. Safe in any thread.

    A refusal is a line in the log, with the client's name where it is known, and never the key.

    Args:
        app: what is called then.
        realm: told with a refusal; the tenant's prefix, which its callers know.
        clients: of the tenant, or None.
        verify: checks a token; None where none are taken.
        endpoint_of: asked for clients that are limited to some endpoints, and for no others.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        app: "WSGIApplication",
        *,
        realm: str,
        clients: Clients | None,
        verify: Verify | None,
        endpoint_of: EndpointOf,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._app = app
        self._verify = verify
        self._endpoint_of = endpoint_of
        self._clock = clock
        listed = () if clients is None else clients.all
        self._keys = tuple((digest, one) for one in listed for digest in one.digests)
        challenge = f'Bearer realm="{realm}"'
        self._no_key = _unauthorized(
            "A key is needed here: Authorization: Bearer KEY, or X-API-Key: KEY.", challenge
        )
        refused = f'{challenge}, error="invalid_token"'
        self._unknown = _unauthorized("This key or token is not valid here.", refused)
        self._expired = _unauthorized("This key has expired.", refused)
        self._not_its_own = ProblemResponse(
            HTTPStatus.FORBIDDEN,
            "This key is not for this part, or not for this method.",
            authenticate=f'{challenge}, error="insufficient_scope"',  # RFC 6750 §3.1
        )

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Refuse the request, or pass it on without the key and with the client's name."""
        for name in (CLIENT, CLAIMS):
            environ.pop(name, None)
        try:
            client = self._client(environ)
        except _Refusal as refusal:
            _log(environ, refusal)
            return refusal.answer(environ, start_response)
        environ[CLIENT] = client
        bind_contextvars(client=client)
        return self._app(environ, start_response)

    def _client(self, environ: "WSGIEnvironment") -> str:
        presented, is_token_possible = self._take(environ)
        client = self._known(presented)
        if client is not None:
            self._check(client, environ)
            return client.name
        if self._verify is None or not is_token_possible:
            raise _Refusal(self._unknown, "the key is unknown")
        return self._subject(presented, self._verify, environ)

    def _take(self, environ: "WSGIEnvironment") -> tuple[str, bool]:
        """Take the key out of the environ; return it, and whether it may be a token."""
        bearer = _BEARER.fullmatch(environ.get(_AUTHORIZATION, ""))
        if key := environ.pop(_API_KEY, ""):
            if bearer and self._known(bearer[1]) is not None:
                del environ[_AUTHORIZATION]  # sent twice, to be sure
            return key, False
        if bearer is None:
            is_there = bool(environ.get(_AUTHORIZATION))
            reason = "Authorization is no 'Bearer KEY'" if is_there else "no key was sent"
            raise _Refusal(self._no_key, reason)
        del environ[_AUTHORIZATION]
        return bearer[1], True

    def _known(self, presented: str) -> Client | None:
        """Return whose key it is; takes the same time whichever it is, and when it is none."""
        digest = key_digest(presented.encode("latin-1", "replace"))  # PEP 3333: bytes as latin-1
        found = None
        for stored, client in self._keys:
            if hmac.compare_digest(stored, digest):
                found = client
        return found

    def _check(self, client: Client, environ: "WSGIEnvironment") -> None:
        if client.expires is not None and self._clock() >= client.expires.timestamp():
            raise _Refusal(self._expired, "the key has expired", client=client.name)
        method = environ["REQUEST_METHOD"]
        allowing = {method, "GET"} if method == "HEAD" else {method}
        if client.methods is not None and not allowing & set(client.methods):
            raise _Refusal(self._not_its_own, "the method is not its own", client=client.name)
        if client.endpoints is not None:
            endpoint = self._endpoint_of(environ)
            if endpoint is not None and endpoint not in client.endpoints:
                raise _Refusal(self._not_its_own, "the endpoint is not its own", client=client.name)

    def _subject(self, token: str, verify: Verify, environ: "WSGIEnvironment") -> str:
        try:
            claims = verify(token)
        except TokenRefusedError as error:
            client = f"oidc:{error.client}" if error.client else ""
            raise _Refusal(
                self._unknown, str(error), client=client, claimed=error.claimed
            ) from None
        except IssuerDownError as error:
            raise _Refusal(_keys_missing(error.retry_after_s), "the issuer is down") from None
        environ[CLAIMS] = claims
        return f"oidc:{claims['sub']}"


def _log(environ: "WSGIEnvironment", refusal: _Refusal) -> None:
    facts = {
        "status": refusal.answer.status.value,
        "reason": refusal.reason,
        "method": environ["REQUEST_METHOD"],
        "path": environ.get("PATH_INFO"),
    }
    facts |= {key: name for key, name in refusal.names.items() if name}
    _logger.warning("client.refused", extra=facts)


def _unauthorized(detail: str, challenge: str) -> ProblemResponse:
    return ProblemResponse(HTTPStatus.UNAUTHORIZED, detail, authenticate=challenge)


def _keys_missing(retry_after_s: int) -> ProblemResponse:
    return ProblemResponse(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Tokens cannot be checked at the moment.",
        retry_after_s=retry_after_s,
    )
