"""Sends each tenant's session, signed token and client key to every other tenant.

Each tenant signs a session that contains a flash message, and a token from `tenantry.serializer`.
After that, each tenant receives one request with the session of another tenant. During this
request, the tenant's app also opens the sessions and tokens of all other tenants. The request asks
for a page that does not exist, so no view runs unless the app has a catch-all route.

The host stores only hashes of client keys, so the audit cannot send an existing key. For the audit,
`prepare_for_audit` adds a client to each tenant that has `CLIENTS`. The audit sends the key of the
added client to every other tenant.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import request_started, session
from itsdangerous import BadData
from werkzeug.test import EnvironBuilder, run_wsgi_app

from tenantry.audit.finding import AuditedTenant, Finding, finding_id, join_names
from tenantry.endpoints.tokens import serializer
from tenantry.http.environ import HEAD_CHECKED_FOR
from tenantry.middleware import authentication
from tenantry.tenants.clients import Client, Clients, key_digest, new_client_key
from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

_PURPOSE = "tenantry-audit"
_SESSION_ITEM = "_tenantry_audit"
_PAGE = "/-tenantry-audit-/"

_SIGNED_KINDS = {"session": "session", "flash": "flash message", "token": "signed token"}
"""Maps each kind of signed value to its name in messages."""
_CLIENT_KEY = "client key"

_EARLY_STATUSES = frozenset({"429", "503"})
"""Status codes with which the host also refuses a request with a valid client key."""


class Acceptance(NamedTuple):
    """Records that a tenant accepts a value of another tenant."""

    kind: str
    source: str
    target: str


@dataclass
class ReplayResult:
    """The result of all replays."""

    pair_count: int = 0
    """Number of pairs of tenants for which the audit has sent values from one to the other."""
    accepted: list[Acceptance] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)
    """Tenants for which the replay proves nothing.

    The replay proves nothing if a tenant rejects its own values, or answers 429 or 503 before
    authentication.
    """
    unauthenticated: list[str] = field(default_factory=list)
    """Tenants that admit a request without a key, although they have `CLIENTS` or `OIDC`."""


@dataclass(frozen=True)
class _SignedValues:
    tenant: str
    cookie_name: str
    session: str
    """Value of the session cookie; empty if the app does not use Flask's signed cookies."""
    token: str


def prepare_for_audit(tenant: Tenant) -> tuple[Tenant, str]:
    """Return a copy of a tenant for the audit, and the key of a client that the copy accepts.

    The copy is not in maintenance and has no limits, because both reject requests before
    authentication. For a tenant without `CLIENTS`, the key is empty. Adding a client would make a
    tenant require keys that is open to everyone.
    """
    unlimited = {"maintenance": False, "rate_limit": None, "max_concurrent_requests": None}
    tenant = tenant.model_copy(update=unlimited)
    if tenant.clients is None:
        return tenant, ""
    key = new_client_key()
    client = Client(_PURPOSE, (key_digest(key.encode()),))
    return tenant.model_copy(update={"clients": Clients((*tenant.clients.all, client))}), key


def replay(tenants: Sequence[AuditedTenant], trusted_hosts: Sequence[str] = ()) -> ReplayResult:
    """Send the session, token and client key of every tenant to every other tenant.

    Args:
        tenants: the tenants, with their apps.
        trusted_hosts: the host's `TRUSTED_HOSTS`. If this list is empty, the host accepts any host
            name.
    """
    result = ReplayResult()
    signed = [_sign(audited) for audited in tenants]
    host_name = next(iter(trusted_hosts), "localhost")
    with _refusals_not_logged():
        for audited, own in zip(tenants, signed, strict=True):
            target = _Target(audited, host_name)
            others = [values for values in signed if values is not own]
            is_proven = target.accepts_own(own)
            result.pair_count += len(others)
            result.accepted += target.accepted(others)
            if target.is_authenticated:
                result.accepted += target.accepted_keys(tenants)
                if target.admits(key=""):
                    result.unauthenticated.append(audited.name)
            if not is_proven or target.has_answered_early:
                result.unproven.append(audited.name)
    return result


def replay_findings(result: ReplayResult, files: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a finding for each tenant and each kind of foreign value that the tenant accepts.

    Args:
        result: the result of `replay`.
        files: maps each tenant to its tenant file.
    """
    sources: dict[tuple[str, str], list[str]] = {}
    for kind, source, target in result.accepted:
        sources.setdefault((target, kind), []).append(source)
    for (target, kind), others in sources.items():
        yield _accepted_finding(target, kind, others, files[target])
    for name in result.unauthenticated:
        yield Finding(
            id="open-gate",
            tenants=(name,),
            text="requests without a key reach the app, although 'CLIENTS' or 'OIDC' is set",
            remedy="remove code that changes Tenantry itself, or report a bug",
            place=files[name],
        )
    for name in result.unproven:
        yield Finding(
            id="replay-unproven",
            tenants=(name,),
            text="replays prove nothing, because the tenant rejects its own session, token or "
            "client key, or answers 429 or 503",
            remedy="check whether code replaces Flask's sessions, or answers requests before Flask",
            place=files[name],
            is_note=True,
        )


def _accepted_finding(target: str, kind: str, sources: Sequence[str], file: str) -> Finding:
    label = _SIGNED_KINDS.get(kind, kind)
    if kind == _CLIENT_KEY:
        remedy = "give the client a different key at each tenant: tenantry key NAME CLIENT"
    else:
        remedy = "give each tenant its own 'SECRET_KEY', and do not replace 'app.session_interface'"
    return Finding(
        id=finding_id("replay", kind),
        tenants=(target, *sources),
        text=f"{target} accepts a {label} that {join_names(sources)} issued",
        remedy=remedy,
        paths=tuple(f"{name}: its {label}, sent to {target}, accepted" for name in sources[:2]),
        place=file,
    )


@contextmanager
def _refusals_not_logged() -> Iterator[None]:
    """Suppress log lines about rejected client keys, because the audit causes many of them."""

    def reject(_: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger(authentication.__name__)
    logger.addFilter(reject)
    try:
        yield
    finally:
        logger.removeFilter(reject)


def _sign(audited: AuditedTenant) -> _SignedValues:
    app, name = audited.app, audited.name
    get_signer = getattr(app.session_interface, "get_signing_serializer", None)
    signer = None if get_signer is None else get_signer(app)
    content = {_SESSION_ITEM: name, "_flashes": [("message", name)]}
    with app.app_context():
        token = str(serializer(_PURPOSE).dumps(name))
    return _SignedValues(
        tenant=name,
        cookie_name=str(app.config["SESSION_COOKIE_NAME"]),
        session="" if signer is None else str(signer.dumps(content)),
        token=token,
    )


class _Target:
    """A tenant that receives the values of other tenants."""

    def __init__(self, audited: AuditedTenant, host_name: str) -> None:
        self.is_authenticated = bool(audited.tenant.clients or audited.tenant.oidc)
        self.has_answered_early = False
        """Whether a request was answered before the host checked its client key."""
        self._audited = audited
        self._app = audited.app
        self._cookie_name = str(audited.app.config["SESSION_COOKIE_NAME"])
        host_name = (audited.tenant.trusted_hosts or (host_name,))[0].removeprefix(".")
        prefix = audited.tenant.url_prefix
        builder = EnvironBuilder(path=prefix + _PAGE, base_url=f"http://{host_name}/")
        self._host_environ = builder.get_environ()
        builder.close()
        # A request with this environ goes directly to the app and bypasses the host's middleware.
        self._app_environ = self._host_environ | {
            "SCRIPT_NAME": prefix, "PATH_INFO": _PAGE, HEAD_CHECKED_FOR: audited.name,
        }  # fmt: skip

    def accepts_own(self, own: _SignedValues) -> bool:
        """Whether the tenant accepts its own client key, session, flash message and token."""
        own_key = self._audited.client_key
        if own_key and not self.admits(own_key):
            return False
        return {item.kind for item in self.accepted([own])} == {*_SIGNED_KINDS}

    def accepted_keys(self, tenants: Sequence[AuditedTenant]) -> list[Acceptance]:
        """Return the client keys of other tenants that the tenant accepts."""
        return [
            Acceptance(_CLIENT_KEY, source.name, self._audited.name)
            for source in tenants
            if source is not self._audited and source.client_key and self.admits(source.client_key)
        ]

    def admits(self, key: str) -> bool:
        """Whether a request with the client key reaches the app. An empty text means no key."""
        is_reached = False

        def note_reached(_: object, **__: object) -> None:
            nonlocal is_reached
            is_reached = True

        with request_started.connected_to(note_reached, self._app):
            status = _send(self._audited.wsgi, self._host_environ | _key_header(key))
        self.has_answered_early |= not is_reached and status in _EARLY_STATUSES
        return is_reached

    def accepted(self, values: Sequence[_SignedValues]) -> list[Acceptance]:
        """Return the signed values that the app accepts.

        The request carries the session of `values[0]`. While the app handles this request, the app
        also opens the other sessions.
        """
        found: list[Acceptance] | None = None

        def open_all(_: object, **__: object) -> None:
            nonlocal found
            found = self._opened(session, values[0])
            for other in values[1:]:
                request = self._app.request_class(self._app_environ | self._cookie_header(other))
                opened = self._app.session_interface.open_session(self._app, request)
                found += self._opened(opened or {}, other)

        if not values:
            return []
        cookie = self._cookie_header(values[0])
        with request_started.connected_to(open_all, self._app):
            _send(
                self._audited.wsgi,
                self._host_environ | cookie | _key_header(self._audited.client_key),
            )
            if found is None:  # the host requires an OIDC token
                _send(self._app.wsgi_app, self._app_environ | cookie)
        return found or []

    def _cookie_header(self, values: _SignedValues) -> dict[str, str]:
        # An attacker can also rename a cookie, so the value is sent under both names.
        names = (values.cookie_name, self._cookie_name)
        return {"HTTP_COOKIE": "; ".join(f"{name}={values.session}" for name in names)}

    def _opened(self, opened: Mapping[str, Any], values: _SignedValues) -> list[Acceptance]:
        kinds = []
        if opened.get(_SESSION_ITEM) == values.tenant:
            kinds.append("session")
        if any(values.tenant in flash for flash in opened.get("_flashes") or ()):
            kinds.append("flash")
        with suppress(BadData):  # a tenant should reject the token of another tenant
            if serializer(_PURPOSE).loads(values.token) == values.tenant:
                kinds.append("token")
        return [Acceptance(kind, values.tenant, self._audited.name) for kind in kinds]


def _key_header(key: str) -> dict[str, str]:
    return {"HTTP_X_API_KEY": key} if key else {}


def _send(wsgi: "WSGIApplication", environ: "WSGIEnvironment") -> str:
    """Send a request, and return the status code, or "" if the app raises an exception."""
    try:
        _, status, _ = run_wsgi_app(wsgi, environ, buffered=True)
    except Exception:  # an app may raise any exception
        logging.getLogger(__name__).debug("replay.failed", exc_info=True)
        return ""
    return status[:3]
