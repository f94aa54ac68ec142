"""Plays what one tenant signed at every other one, through the real stack, in this process.

Each tenant signs a session, a flash message in it, and a token (`core.tokens`). A request to every
other tenant carries them; a receiver of Flask's `request_started` tells what its app made of it.
The requests ask for a page that is not there: views of a tenant run only if they take any path.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flask import Flask, request_started, session
from itsdangerous import BadData
from werkzeug.test import EnvironBuilder

from core.audit_finding import Audited, Finding
from core.tokens import serializer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

PURPOSE = "tenantry-audit"
PAIRS_BY_REQUEST = 400
"""Ordered pairs that get a request each: 20 tenants' take 1 s. With more, each tenant gets one
request, in which its app opens what all others signed: 200 tenants are 39,800 pairs."""

_MARK = "_tenantry_audit"
_PAGE = "/-tenantry-audit-/"
_KINDS = ("session", "flash", "token")


@dataclass(frozen=True)
class Signed:
    """What one tenant signed."""

    tenant: str
    name: str
    """Of its session's cookie."""
    cookie: str
    """The session's value; empty where its sessions are not Flask's."""
    token: str


@dataclass
class Replays:
    """How the replays went."""

    tried: int = 0
    """Ordered pairs of tenants."""
    accepted: list[tuple[str, str, str]] = field(default_factory=list)
    """Kind, the tenant that signed, the tenant that accepted."""
    unproven: list[str] = field(default_factory=list)
    """Tenants that do not accept their own: their refusals say nothing."""


def replay(audited: Sequence[Audited], hosts: Iterable[str] = ()) -> Replays:
    """Send what every tenant signed to every other.

    Args:
        audited: the tenants.
        hosts: host names that the host answers; any, where there are none.
    """
    done = Replays()
    signed = [_sign(one.app, one.name) for one in audited]
    wanted = next(iter(hosts), "localhost").removeprefix(".")
    is_whole = len(signed) * (len(signed) - 1) <= PAIRS_BY_REQUEST
    for place, target in enumerate(audited):
        asked = _Asked(target, _host_of(target, wanted))
        others = signed[place + 1 :] + signed[:place]
        if asked.accepted([signed[place]]) != [(kind, target.name) for kind in _KINDS]:
            done.unproven.append(target.name)
        for batch in [[one] for one in others] if is_whole else [others]:
            taken = asked.accepted(batch)
            done.accepted += [(kind, source, target.name) for kind, source in taken]
        done.tried += len(others)
    return done


def replay_findings(done: Replays, names: dict[str, str]) -> Iterator[Finding]:
    """Yield a finding for each tenant and kind that accepts what others signed.

    Args:
        done: the replays.
        names: tenant → its file, which the findings name.
    """
    sources: dict[tuple[str, str], list[str]] = {}
    for kind, source, target in done.accepted:
        sources.setdefault((target, kind), []).append(source)
    for (target, kind), others in sources.items():
        yield Finding(
            f"replay:{kind}",
            (target, *others),
            f"{target} accepts a {kind} that {', '.join(others[:3])} signed",
            "give each tenant its own SECRET_KEY, and leave app.session_interface as it is",
            tuple(f"{one}: its {kind}, sent to {target}, accepted" for one in others[:2]),
            names[target],
        )
    for name in done.unproven:
        yield Finding(
            "replay-unproven",
            (name,),
            f"{name} does not accept its own session and token either, so replays prove nothing",
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
        self._app = target.app
        self._wsgi = target.wsgi
        self._name = str(target.app.config["SESSION_COOKIE_NAME"])
        prefix = target.tenant.url_prefix
        builder = EnvironBuilder(path=prefix + _PAGE, base_url=f"http://{host}/")
        self._whole = builder.get_environ()
        builder.close()
        self._inner = self._whole | {"SCRIPT_NAME": prefix, "PATH_INFO": _PAGE}

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
        with request_started.connected_to(look, self._app):
            _ask(self._wsgi, self._whole | cookie)
            if seen is None:  # refused before the app: it is in maintenance, or asks for a key
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


def _ask(wsgi: "WSGIApplication", environ: "WSGIEnvironment") -> None:
    """Send one request and throw the answer away, whatever it is."""

    def start(_: str, __: list[tuple[str, str]], ___: Any = None) -> Any:
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
