"""Sends each tenant's session, signed token and client key to every other tenant.

Each tenant gets a request during which its app stores a flash message in the session and signs a
token with `tenantry.serializer`. The response carries the session's cookies, whatever the session
interface of the app is. After that, each tenant receives one request with the cookies of another
tenant. During this request, the tenant's app also opens the sessions and tokens of all other
tenants. At the end, each app clears its session. The requests ask for a page that does not exist,
so no view runs unless the app has a catch-all route.

The host stores only hashes of client keys, so the audit cannot send an existing key. For the audit,
`prepare_for_audit` adds a client to each tenant that has `CLIENTS`. The audit sends the key of the
added client to every other tenant.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from flask import flash, request_started, session
from itsdangerous import BadData
from werkzeug.test import EnvironBuilder, run_wsgi_app

from tenantry.audit.finding import AuditedTenant, Finding, finding_id, join_names
from tenantry.audit.raw_access import full_name, mro
from tenantry.audit.written_files import WrittenFiles
from tenantry.endpoints.tokens import serializer
from tenantry.http.environ import HEAD_CHECKED_FOR
from tenantry.middleware import authentication
from tenantry.tenants.clients import Client, Clients, key_digest, new_client_key
from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

ANSWER_S = 30.0
"""Seconds after which the audit no longer waits for the answers of an app."""

FLASK_SESSION = "flask_session.base.ServerSideSessionInterface"

_PURPOSE = "tenantry-audit"
_SESSION_ITEM = "_tenantry_audit"
_PAGE = "/-tenantry-audit-/"

_SIGNED_KINDS = {"session": "session", "flash": "flash message", "token": "signed token"}
"""Maps each kind of value that an app issues to its name in messages."""
_CLIENT_KEY = "client key"

_EARLY_STATUSES = frozenset({"429", "503"})
"""Status codes with which the host also refuses a request with a valid client key."""

T = TypeVar("T")

_Cookies = tuple[tuple[str, str], ...]


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
    unproven: dict[str, str] = field(default_factory=dict)
    """Maps each tenant for which the replay proves nothing to the reason.

    The replay proves nothing if a tenant rejects its own values, does not answer, or answers 429 or
    503 before authentication.
    """
    unauthenticated: list[str] = field(default_factory=list)
    """Tenants that admit a request without a key, although they have `CLIENTS` or `OIDC`."""


@dataclass(frozen=True)
class _Issued:
    """What a tenant has given to a client."""

    tenant: str
    cookies: _Cookies
    session_cookie: str
    """Value of the session cookie; empty if the app keeps no sessions."""
    token: str
    failure: str
    """Why the app could not store a session, or empty."""


@dataclass(frozen=True)
class _Admitted:
    """What a tenant accepts."""

    accepted: list[Acceptance]
    is_open: bool
    """Whether the tenant admits a request without a key, although it requires one."""


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


def replay(
    tenants: Sequence[AuditedTenant],
    trusted_hosts: Sequence[str] = (),
    files: WrittenFiles | None = None,
) -> ReplayResult:
    """Send the session, token and client key of every tenant to every other tenant.

    Args:
        tenants: the tenants, with their apps.
        trusted_hosts: the host's `TRUSTED_HOSTS`. If this list is empty, the host accepts any host
            name.
        files: records the files that the apps write.
    """
    result = ReplayResult()
    host_name = next(iter(trusted_hosts), "localhost")
    with _refusals_not_logged():
        targets = [_Target(audited, host_name, files) for audited in tenants]
        issued = [target.in_time(target.issue) for target in targets]
        for target, own in zip(targets, issued, strict=True):
            others = [values for values in issued if values is not None and values is not own]
            result.pair_count += len(others)
            if own is not None:
                trial = target.in_time(partial(target.tried, own, others, tenants))
                result.accepted += [] if trial is None else trial.accepted
                result.unauthenticated += [target.name] if trial and trial.is_open else []
            if target.problem:
                result.unproven[target.name] = target.problem
        for target, own in zip(targets, issued, strict=True):
            if own is not None:
                target.in_time(partial(target.forget, own))
    return result


def replay_findings(result: ReplayResult, tenants: Sequence[AuditedTenant]) -> Iterator[Finding]:
    """Yield a finding for each tenant and each kind of foreign value that the tenant accepts."""
    by_name = {audited.name: audited for audited in tenants}
    sources: dict[tuple[str, str], list[str]] = {}
    for kind, source, target in result.accepted:
        sources.setdefault((target, kind), []).append(source)
    for (target, kind), others in sources.items():
        yield _accepted_finding(by_name[target], kind, others)
    for name in result.unauthenticated:
        yield Finding(
            id="open-gate",
            tenants=(name,),
            text="requests without a key reach the app, although 'CLIENTS' or 'OIDC' is set",
            remedy="remove code that changes Tenantry itself, or report a bug",
            place=by_name[name].tenant.file,
        )
    for name, reason in result.unproven.items():
        yield Finding(
            id="replay-unproven",
            tenants=(name,),
            text=f"the audit cannot prove that {name} rejects the sessions and keys of other "
            f"tenants: {reason}",
            remedy="start the services that the app needs, such as its session store, and audit "
            "again; if code answers before Flask, test it yourself and add the ID to AUDIT_ACCEPT",
            place=by_name[name].tenant.file,
        )


def _accepted_finding(target: AuditedTenant, kind: str, sources: Sequence[str]) -> Finding:
    label = _SIGNED_KINDS.get(kind, kind)
    interface = type(target.app.session_interface)
    if kind == _CLIENT_KEY:
        remedy = "give the client a different key at each tenant: tenantry key NAME CLIENT"
    elif any(full_name(class_) == FLASK_SESSION for class_ in mro(interface)):
        line = f"SESSION_KEY_PREFIX = {target.name + ':session:'!r}"
        remedy = f"give each tenant its own prefix; in {target.tenant.file}: {line}"
    else:
        remedy = "give each tenant its own 'SECRET_KEY', and do not replace 'app.session_interface'"
    return Finding(
        id=finding_id("replay", kind),
        tenants=(target.name, *sources),
        text=f"{target.name} accepts a {label} that {join_names(sources)} issued",
        remedy=remedy,
        paths=tuple(
            f"{name}: its {label}, sent to {target.name}, accepted" for name in sources[:2]
        ),
        place=target.tenant.file,
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


class _Target:
    """A tenant that issues values, and receives the values of other tenants."""

    def __init__(self, audited: AuditedTenant, host_name: str, files: WrittenFiles | None) -> None:
        self.name = audited.name
        self._files = files
        self._is_authenticated = bool(audited.tenant.clients or audited.tenant.oidc)
        self.problem = ""
        """Why answers of the tenant prove nothing, or empty."""
        self._attempts = 0
        self._audited = audited
        self._app = audited.app
        self._cookie_name = str(audited.app.config["SESSION_COOKIE_NAME"])
        names = audited.tenant.hosts or audited.tenant.trusted_hosts or (host_name,)
        host_name, prefix = names[0].removeprefix("."), audited.tenant.address.root
        builder = EnvironBuilder(path=prefix + _PAGE, base_url=f"http://{host_name}/")
        self._host_environ = builder.get_environ()
        builder.close()
        # A request with this environ goes directly to the app and bypasses the host's middleware.
        self._app_environ = self._host_environ | {
            "SCRIPT_NAME": prefix, "PATH_INFO": _PAGE, HEAD_CHECKED_FOR: audited.name,
        }  # fmt: skip

    def in_time(self, work: Callable[[], T]) -> T | None:
        """Do work with the app in a thread of its own, because an app may block forever.

        If the app does not end the work in time, set `problem` and return None.
        """
        no_answer = f"it does not answer within {ANSWER_S:g} s"
        results: list[T] = []
        if self.problem != no_answer:
            thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
            with nullcontext() if self._files is None else self._files.of(self.name):
                thread.start()
                thread.join(ANSWER_S)
            if not results:
                self.problem = no_answer
        return next(iter(results), None)

    def issue(self) -> _Issued:
        """Let the app store a session and sign a token, and return both."""
        token, has_sessions = "", True

        def store() -> None:
            nonlocal token, has_sessions
            token = str(serializer(_PURPOSE).dumps(self.name))
            has_sessions = not self._app.session_interface.is_null_session(session)
            if has_sessions:
                session[_SESSION_ITEM] = self.name
                flash(self.name)

        cookies = self._request({}, store)
        found = dict(cookies).get(self._cookie_name, "")
        failure = self.problem or ("" if token else "its app handles no request")
        if has_sessions and not (found or failure):
            failure = "its app sets no session cookie"
        return _Issued(self.name, cookies, found, token, failure)

    def tried(
        self, own: _Issued, others: Sequence[_Issued], tenants: Sequence[AuditedTenant]
    ) -> _Admitted:
        """Try the values of the tenant itself, and of all other tenants."""
        if reason := self._why_own_is_rejected(own):
            self.problem = reason
        accepted = self._accepted(others)
        if self._is_authenticated:
            accepted += self._accepted_keys(tenants)
        return _Admitted(accepted, is_open=self._is_authenticated and self._admits(key=""))

    def forget(self, own: _Issued) -> None:
        """Let the app remove the session that `issue` has stored."""
        if own.session_cookie:
            self._request(self._cookie_header(own), lambda: session.clear())  # noqa: PLW0108 - a proxy

    def _why_own_is_rejected(self, own: _Issued) -> str:
        """Return why the tenant rejects its own client key, session, flash message or token.

        If the tenant accepts all of them, the result is empty.
        """
        own_key = self._audited.client_key
        if own_key and not self._admits(own_key):
            return self.problem or "it rejects its own client key"
        if own.failure:
            return own.failure
        found = {item.kind for item in self._accepted([own])}
        wanted = _SIGNED_KINDS if own.session_cookie else ["token"]
        missing = [_SIGNED_KINDS[kind] for kind in wanted if kind not in found]
        return f"it rejects its own {missing[0]}" if missing else ""

    def _accepted_keys(self, tenants: Sequence[AuditedTenant]) -> list[Acceptance]:
        """Return the client keys of other tenants that the tenant accepts."""
        return [
            Acceptance(_CLIENT_KEY, source.name, self.name)
            for source in tenants
            if source is not self._audited and source.client_key and self._admits(source.client_key)
        ]

    def _admits(self, key: str) -> bool:
        """Whether a request with the client key reaches the app. An empty text means no key."""
        is_reached = False

        def note_reached(_: object, **__: object) -> None:
            nonlocal is_reached
            is_reached = True

        # Each attempt has an address of its own (RFC 3849), so that the host does not answer 429 to
        # an address with many failed attempts.
        self._attempts += 1
        environ = self._host_environ | {"REMOTE_ADDR": f"2001:db8:{self._attempts:x}::1"}
        with request_started.connected_to(note_reached, self._app):
            answer = _answer(self._audited.wsgi, environ | _key_header(key))
        if not is_reached and answer.status in _EARLY_STATUSES:
            self.problem = f"it answers {answer.status} before it checks a client key"
        return is_reached

    def _accepted(self, values: Sequence[_Issued]) -> list[Acceptance]:
        """Return the sessions, flash messages and tokens that the app accepts.

        The request carries the cookies of `values[0]`. While the app handles this request, the app
        also opens the other sessions.
        """
        found: list[Acceptance] = []

        def open_all() -> None:
            found.extend(self._opened(session, values[0]))
            for other in values[1:]:
                environ = self._app_environ | self._cookie_header(other)
                request = self._app.request_class(environ)
                opened = self._app.session_interface.open_session(self._app, request)
                found.extend(self._opened({} if opened is None else opened, other))

        if values:
            self._request(self._cookie_header(values[0]), open_all)
        return found

    def _request(self, cookies: dict[str, str], work: Callable[[], None]) -> _Cookies:
        """Send a request, do work while the app handles it, and return the response's cookies."""
        is_reached = False

        def do_work(_: object, **__: object) -> None:
            nonlocal is_reached
            is_reached = True
            try:
                work()
            except Exception as error:  # noqa: BLE001 - a session interface may raise any exception
                self.problem = f"its session interface raises {type(error).__name__}"

        environ = self._host_environ | cookies | _key_header(self._audited.client_key)
        with request_started.connected_to(do_work, self._app):
            answer = _answer(self._audited.wsgi, environ)
            if not is_reached:  # the host requires an OIDC token
                answer = _answer(self._app.wsgi_app, self._app_environ | cookies)
        return answer.cookies

    def _cookie_header(self, values: _Issued) -> dict[str, str]:
        # An attacker can also rename a cookie, so the session is sent under both names.
        cookies = dict(values.cookies) | {self._cookie_name: values.session_cookie}
        return {"HTTP_COOKIE": "; ".join(f"{name}={value}" for name, value in cookies.items())}

    def _opened(self, opened: Mapping[str, Any], values: _Issued) -> list[Acceptance]:
        kinds = []
        if opened.get(_SESSION_ITEM) == values.tenant:
            kinds.append("session")
        if any(values.tenant in flashed for flashed in opened.get("_flashes") or ()):
            kinds.append("flash")
        with suppress(BadData):  # a tenant should reject the token of another tenant
            if serializer(_PURPOSE).loads(values.token) == values.tenant:
                kinds.append("token")
        return [Acceptance(kind, values.tenant, self.name) for kind in kinds]


class _Answer(NamedTuple):
    """The answer to a request. The status is empty if the app raises an exception."""

    status: str = ""
    cookies: _Cookies = ()


def _key_header(key: str) -> dict[str, str]:
    return {"HTTP_X_API_KEY": key} if key else {}


def _answer(wsgi: "WSGIApplication", environ: "WSGIEnvironment") -> _Answer:
    try:
        _, status, headers = run_wsgi_app(wsgi, environ, buffered=True)
    except BaseException:
        logging.getLogger(__name__).debug("replay.failed", exc_info=True)
        return _Answer()
    pairs = [header.partition(";")[0].partition("=") for header in headers.getlist("Set-Cookie")]
    return _Answer(status[:3], tuple((name, value) for name, _, value in pairs))
