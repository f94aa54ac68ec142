"""Plays what is one tenant's at every other one, through the real stack, in this process.

Each tenant signs a session, a flash message in it, and a token (`tenantry.serializer`). A request
to every other tenant carries them; a receiver of Flask's `request_started` tells what its app made
of it. The requests ask for a page that is not there: views of a tenant run only if they take any
path.

Of clients' keys a host knows the hashes only. So a tenant with `CLIENTS` is audited with one client
more, made for the audit (`for_replay`); every other tenant that lets only clients in is asked with
its key, and its gate must keep the request from the app.
"""

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flask import Flask, request_started, session
from itsdangerous import BadData
from werkzeug.test import EnvironBuilder

from tenantry.audit.finding import Audited, Finding, stable_id
from tenantry.endpoints.tokens import serializer
from tenantry.middleware import authentication as clients
from tenantry.middleware.edge import HOST_IS_CHECKED
from tenantry.tenants.clients import Client, Clients, key_digest, new_client_key
from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

PURPOSE = "tenantry-audit"
PAIRS_BY_REQUEST = 400
"""Ordered pairs that get a request each: 20 tenants' take 1 s. With more, each tenant gets one
request, in which its app opens what all others signed: 200 tenants are 39,800 pairs."""

_MARK = "_tenantry_audit"
_PAGE = "/-tenantry-audit-/"
_SIGNED = ("session", "flash", "token")
_KEY = "client key"
_TURNED_AWAY = frozenset({"429", "503"})
"""Answers that say nothing of a key: nobody looked at it."""


@dataclass(frozen=True)
class Signed:
    """What one tenant signed."""

    tenant: str
    name: str
    """Of its session's cookie."""
    cookie: str
    """The session's value; empty where its sessions are not Flask's."""
    token: str


def for_replay(tenant: Tenant) -> tuple[Tenant, str]:
    """Return the tenant as it is built for an audit, and the key of the client that it has for it.

    It is out of maintenance and has no rate, whose answers come before any gate; and what it counts
    in a store, real clients would lack. Without `CLIENTS` the key is "": with a client it would be
    another tenant, an open one closed.
    """
    unlimited = {"maintenance": False, "rate_limit": None, "max_concurrent_requests": None}
    awake = tenant.model_copy(update=unlimited)
    if tenant.clients is None:
        return awake, ""
    key = new_client_key()
    probe = Client(PURPOSE, (key_digest(key.encode()),))
    return awake.model_copy(update={"clients": Clients((*tenant.clients.all, probe))}), key


@dataclass
class Replays:
    """How the replays went."""

    tried: int = 0
    """Ordered pairs of tenants."""
    accepted: list[tuple[str, str, str]] = field(default_factory=list)
    """Kind, whose it is, the tenant that accepted."""
    unproven: list[str] = field(default_factory=list)
    """Tenants that do not accept their own, or turn away unlooked: their refusals say nothing."""
    ungated: list[str] = field(default_factory=list)
    """Tenants with `CLIENTS` or `OIDC` that strangers get into."""


def replay(audited: Sequence[Audited], hosts: Iterable[str] = ()) -> Replays:
    """Send what is every tenant's to every other.

    Args:
        audited: the tenants.
        hosts: host names that the host answers; any, where there are none.
    """
    done = Replays()
    signed = [_sign(one.app, one.name) for one in audited]
    wanted = next(iter(hosts), "localhost").removeprefix(".")
    is_whole = len(signed) * (len(signed) - 1) <= PAIRS_BY_REQUEST
    with _refusals_unlogged():
        for place, target in enumerate(audited):
            asked = _Asked(target, _host_of(target, wanted))
            others = signed[place + 1 :] + signed[:place]
            is_proven = asked.accepts_its_own(signed[place])
            for batch in [[one] for one in others] if is_whole else [others]:
                taken = asked.accepted(batch)
                done.accepted += [(kind, source, target.name) for kind, source in taken]
            if asked.is_gated and asked.admits(""):
                done.ungated.append(target.name)
            for source in audited if asked.is_gated else ():
                if source is not target and source.client_key and asked.admits(source.client_key):
                    done.accepted.append((_KEY, source.name, target.name))
            if not is_proven or asked.has_turned_away:
                done.unproven.append(target.name)
            done.tried += len(others)
    return done


@contextmanager
def _refusals_unlogged() -> Iterator[None]:
    """Keep what this thread is refused out of the log: it would be a line for each pair."""
    here = threading.get_ident()

    def is_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != here

    logger = logging.getLogger(clients.__name__)
    logger.addFilter(is_elsewhere)
    try:
        yield
    finally:
        logger.removeFilter(is_elsewhere)


def replay_findings(done: Replays, names: dict[str, str]) -> Iterator[Finding]:
    """Yield a finding for each tenant and kind that accepts what is of others.

    Args:
        done: the replays.
        names: tenant → its file, which the findings name.
    """
    sources: dict[tuple[str, str], list[str]] = {}
    for kind, source, target in done.accepted:
        sources.setdefault((target, kind), []).append(source)
    for (target, kind), others in sources.items():
        yield Finding(
            stable_id("replay", kind),
            (target, *others),
            f"{target} accepts a {kind} of {', '.join(others[:3])}",
            "give each client a key of its own, and let no endpoint change Tenantry itself"
            if kind == _KEY
            else "give each tenant its own SECRET_KEY, and leave app.session_interface as it is",
            tuple(f"{one}: its {kind}, sent to {target}, accepted" for one in others[:2]),
            names[target],
        )
    for name in done.ungated:
        yield Finding(
            "open-gate",
            (name,),
            f"{name} has CLIENTS or OIDC, and a request without a key reaches its app",
            "let no endpoint change Tenantry itself; what else it may be is a fault of Tenantry",
            place=names[name],
        )
    for name in done.unproven:
        yield Finding(
            "replay-unproven",
            (name,),
            f"{name} does not accept all that is its own either, or answers 429 or 503: replays "
            "prove nothing",
            "look whether the app has sessions of its own, or answers before Flask does",
            place=names[name],
            is_note=True,
        )


def _sign(app: Flask, name: str) -> Signed:
    find = getattr(app.session_interface, "get_signing_serializer", None)
    signer = find(app) if find is not None else None
    cookie = str(app.config["SESSION_COOKIE_NAME"])
    content = {_MARK: name, "_flashes": [("message", name)]}
    with app.app_context():
        token = str(serializer(PURPOSE).dumps(name))
    return Signed(name, cookie, "" if signer is None else str(signer.dumps(content)), token)


def _host_of(target: Audited, wanted: str) -> str:
    return (target.tenant.trusted_hosts or (wanted,))[0].removeprefix(".")


class _Asked:
    """One tenant, asked about what others signed."""

    def __init__(self, target: Audited, host: str) -> None:
        self.is_gated = target.tenant.clients is not None or target.tenant.oidc is not None
        self.has_turned_away = False
        """Whether a question about its gate got an answer that says nothing."""
        self._app = target.app
        self._wsgi = target.wsgi
        self._key = target.client_key
        self._name = str(target.app.config["SESSION_COOKIE_NAME"])
        prefix = target.tenant.url_prefix
        builder = EnvironBuilder(path=prefix + _PAGE, base_url=f"http://{host}/")
        self._whole = builder.get_environ()
        builder.close()
        inner = {"SCRIPT_NAME": prefix, "PATH_INFO": _PAGE, HOST_IS_CHECKED: True}
        self._inner = self._whole | inner

    def accepts_its_own(self, signed: Signed) -> bool:
        """Whether it takes what it signed itself, and lets its own client in."""
        if self._key and not self.admits(self._key):
            return False
        return self.accepted([signed]) == [(kind, signed.tenant) for kind in _SIGNED]

    def admits(self, key: str) -> bool:
        """Whether a request with this client key reaches the app."""
        has_come = False

        def note(_: object, **__: object) -> None:
            nonlocal has_come
            has_come = True

        with request_started.connected_to(note, self._app):
            status = _ask(self._wsgi, self._whole | ({"HTTP_X_API_KEY": key} if key else {}))
        self.has_turned_away |= not has_come and status in _TURNED_AWAY
        return has_come

    def accepted(self, signed: Sequence[Signed]) -> list[tuple[str, str]]:
        """Return kind and signer of what this tenant takes for its own.

        The request carries the first; the others are opened in it, as the app opens a request's.
        """
        seen: list[tuple[str, str]] | None = None

        def look(_: object, **__: object) -> None:
            nonlocal seen
            seen = _taken(session, signed[0])
            for one in signed[1:]:
                request = self._app.request_class(self._inner | {"HTTP_COOKIE": self._cookie(one)})
                opened = self._app.session_interface.open_session(self._app, request)
                seen += _taken(opened or {}, one)

        cookie = {"HTTP_COOKIE": self._cookie(signed[0])}
        key = {"HTTP_X_API_KEY": self._key} if self._key else {}
        with request_started.connected_to(look, self._app):
            _ask(self._wsgi, self._whole | cookie | key)
            if seen is None:  # refused before the app: it is in maintenance, or asks for a token
                _ask(self._app.wsgi_app, self._inner | cookie)
        return seen or []

    def _cookie(self, signed: Signed) -> str:
        # Browsers would not send a neighbour's cookie here; who copies it does, under this name.
        return f"{signed.name}={signed.cookie}; {self._name}={signed.cookie}"


def _taken(opened: Mapping[str, Any], signed: Signed) -> list[tuple[str, str]]:
    taken = []
    if opened.get(_MARK) == signed.tenant:
        taken.append("session")
    if any(signed.tenant in flash for flash in opened.get("_flashes") or ()):
        taken.append("flash")
    with suppress(BadData):
        if serializer(PURPOSE).loads(signed.token) == signed.tenant:
            taken.append("token")
    return [(kind, signed.tenant) for kind in taken]


def _ask(wsgi: "WSGIApplication", environ: "WSGIEnvironment") -> str:
    """Send one request and throw the answer away; return its status, `429`; "" for none."""
    status = ""

    def start(line: str, _: list[tuple[str, str]], __: Any = None) -> Any:
        nonlocal status
        status = line[:3]
        return lambda _: None

    body: Any = None
    try:
        body = wsgi(environ, start)
        for _ in body:
            pass
    except Exception:
        logging.getLogger(__name__).debug("replay.failed", exc_info=True)
    finally:
        getattr(body, "close", lambda: None)()
    return status
