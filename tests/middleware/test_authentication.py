"""Who gets into a tenant: the gate alone, and in a host."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client as HttpClient
from werkzeug.test import TestResponse

from servers import CONFIG_FILE, Server
from tenantry.host import Host
from tenantry.middleware.authentication import (
    CLAIMS,
    CLIENT,
    Authentication,
    IssuerDownError,
    TokenRefusedError,
)
from tenantry.observability.logging import configure_logging
from tenantry.tenants.clients import Clients, hash_client_key, parse_clients

KEYS = {name: f"tenantry_{name * 8}" for name in ("web", "old", "new", "ended", "shop", "reader")}
FILE = {
    "web": hash_client_key(KEYS["web"]),
    "turning": [hash_client_key(KEYS["new"]), hash_client_key(KEYS["old"])],
    "ended": {"key": hash_client_key(KEYS["ended"]), "expires": "2020-01-01"},
    "shop": {"key": hash_client_key(KEYS["shop"]), "endpoints": ["corp.shop"]},
    "reader": {"key": hash_client_key(KEYS["reader"]), "methods": ["GET"]},
}
TOKEN = "header.payload.signature"

SHOP = """
from flask import Blueprint, request
shop_bp = Blueprint("shop", __name__)

@shop_bp.get("/shop/<int:number>")
def item(number):
    return {"client": request.environ["tenantry.client"], "headers": dict(request.headers)}

@shop_bp.post("/shop/")
def buy():
    return {}

@shop_bp.before_app_request
def note():
    request.environ.get("test.seen", []).append(request.path)

@shop_bp.get("/fail")
def fail():
    raise ValueError("the reason")
"""


def clients(**file: object) -> Clients:
    """Return the clients of a tenant file."""
    parsed = parse_clients(file or FILE, "acme", None)
    assert parsed is not None
    return parsed


def verify(token: str) -> dict[str, Any]:
    """Stand for the check of tokens: some are good, some not, for some there are no keys."""
    match token:
        case "down":
            raise IssuerDownError(7)
        case "stale":
            raise TokenRefusedError("expired_token exp", client="ada")
        case "forged":
            raise TokenRefusedError("bad_signature", claimed="ada")
        case _ if token == TOKEN:
            return {"sub": "ada", "role": "shop"}
    raise TokenRefusedError("malformed")


Send = Callable[..., TestResponse]


@pytest.fixture(name="seen")
def _seen() -> list[dict[str, Any]]:
    """Return the environs that the app was called with."""
    return []


@pytest.fixture(name="send")
def _send(seen: list[dict[str, Any]]) -> Send:
    """Return a function that sends a request with these headers through a gate."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(environ)
        start_response("200 OK", [("Content-Length", "0")])
        return []

    def endpoint_of(environ: dict[str, Any]) -> str | None:
        return {"/shop/": "corp.shop", "/static/x": "", "/": "landing"}.get(environ["PATH_INFO"])

    def send(
        path: str = "/", method: str = "GET", *, file: Any = None, **headers: str
    ) -> TestResponse:
        gate = Authentication(
            app,
            realm="/acme",
            clients=clients(**(file or {})),
            verify=None if file else verify,
            endpoint_of=endpoint_of,
        )
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return HttpClient(gate).open(path, method=method, headers=named)

    return send


def answer(response: TestResponse) -> tuple[int, str | None]:
    """Return the status and what a client is asked for."""
    challenge = response.headers.get("WWW-Authenticate", "").removeprefix('Bearer realm="/acme"')
    return response.status_code, challenge.removeprefix(", ") or None


INVALID = 'error="invalid_token"'
SCOPE = 'error="insufficient_scope"'


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Authorization", "Bearer {}"),
        ("Authorization", "bearer   {} "),
        ("X_API_Key", "{}"),
    ],
)
def test_a_key_lets_in_and_goes_no_further(
    send: Send, seen: list[dict[str, Any]], header: str, value: str
) -> None:
    """The app sees the client's name, and the key nowhere in the environ."""
    response = send(**{header: value.format(KEYS["web"])})

    assert (200, ["web"]) == (response.status_code, [environ[CLIENT] for environ in seen])
    assert KEYS["web"] not in str(seen)


@pytest.mark.parametrize("key", ["old", "new"])
def test_two_keys_let_in_while_one_replaces_the_other(
    send: Send, seen: list[dict[str, Any]], key: str
) -> None:
    """Rotation: both are good until the operator removes one."""
    send(X_API_Key=KEYS[key])

    assert ["turning"] == [environ[CLIENT] for environ in seen]


@pytest.mark.parametrize(
    ("headers", "asked"),
    [
        ({}, None),
        ({"Authorization": ""}, None),
        ({"Authorization": "Basic d2ViOng="}, None),
        ({"Authorization": "Bearer"}, None),
        ({"Authorization": "Bearer two words"}, None),
        ({"X_API_Key": ""}, None),
        ({"X_API_Key": "wrong"}, INVALID),
        ({"X_API_Key": FILE["web"]}, INVALID),
        ({"X_API_Key": "é\xff"}, INVALID),
        ({"X_API_Key": "wrong", "Authorization": f"Bearer {KEYS['web']}"}, INVALID),
        ({"X_API_Key": TOKEN}, INVALID),
        ({"X_API_Key": KEYS["ended"]}, INVALID),
        ({"Authorization": "Bearer forged"}, INVALID),
        ({"Authorization": "Bearer stale"}, INVALID),
        ({"Authorization": f"Bearer {KEYS['web']},Bearer {KEYS['web']}"}, None),
        ({"Authorization": f"Token {KEYS['web']}"}, None),
    ],
)
def test_nobody_else_gets_in(
    send: Send, seen: list[dict[str, Any]], headers: dict[str, str], asked: str | None
) -> None:
    """401 as a problem document, with a challenge (RFC 6750 §3); the app is not called."""
    response = send(**headers)

    assert (401, asked, []) == (*answer(response), seen)
    assert "application/problem+json" == response.content_type
    assert response.headers["WWW-Authenticate"].startswith('Bearer realm="/acme"')


@pytest.mark.parametrize(
    ("key", "method", "path", "expected"),
    [
        ("shop", "GET", "/shop/", (200, None)),
        ("shop", "GET", "/", (403, SCOPE)),
        ("shop", "GET", "/static/x", (403, SCOPE)),
        ("shop", "GET", "/nothing", (200, None)),  # so the app answers 404
        ("reader", "GET", "/", (200, None)),
        ("reader", "HEAD", "/", (200, None)),
        ("reader", "POST", "/", (403, SCOPE)),
        ("reader", "OPTIONS", "/", (403, SCOPE)),
        ("web", "DELETE", "/", (200, None)),
    ],
)
def test_a_limited_key_is_for_its_part(
    send: Send, key: str, method: str, path: str, expected: tuple[int, str | None]
) -> None:
    """403 where the key is right and the endpoint or the method is not its own."""
    assert expected == answer(send(path, method, X_API_Key=KEYS[key]))


def test_a_preflight_is_refused() -> None:
    """It carries no key, and would run the app for strangers."""
    gate = Authentication(
        pytest.fail, realm="/acme", clients=clients(), verify=None, endpoint_of=pytest.fail
    )
    headers = {"Origin": "https://else.test", "Access-Control-Request-Method": "GET"}

    assert 401 == HttpClient(gate).options("/", headers=headers).status_code


def test_a_key_ends_when_it_expires() -> None:
    """At that moment, by the clock of the host."""
    ends = clients(web={"key": FILE["web"], "expires": "2027-01-31T00:00Z"})
    moment = ends.all[0].expires
    assert moment is not None
    now = [moment.timestamp() - 1]
    gate = Authentication(
        lambda _, start: start("200 OK", []) and [],  # type: ignore[arg-type, return-value]
        realm="/acme",
        clients=ends,
        verify=None,
        endpoint_of=pytest.fail,
        clock=lambda: now[0],
    )
    statuses = []
    for _ in range(2):
        statuses.append(HttpClient(gate).get("/", headers={"X-API-Key": KEYS["web"]}).status_code)
        now[0] += 1

    assert [200, 401] == statuses


def test_a_token_lets_in_where_there_are_keys_too(send: Send, seen: list[dict[str, Any]]) -> None:
    """The app gets its claims, and not the token; the name cannot be taken for a client's."""
    send(Authorization=f"Bearer {TOKEN}")

    assert [("oidc:ada", "shop")] == [(one[CLIENT], one[CLAIMS]["role"]) for one in seen]
    assert TOKEN not in str(seen)


def test_an_issuer_that_is_down_is_no_fault_of_the_client(send: Send) -> None:
    """503 and when to come again: it may well have a good token."""
    response = send(Authorization="Bearer down")

    assert (503, "7") == (response.status_code, response.headers["Retry-After"])


def test_beside_an_api_key_the_apps_own_authorization_passes(
    send: Send, seen: list[dict[str, Any]]
) -> None:
    """An app may know users of its own; a client's key that is sent twice still goes no further."""
    for value in ("Basic YTpi", "Bearer of-the-app", f"Bearer {KEYS['new']}"):
        send(X_API_Key=KEYS["web"], Authorization=value)

    assert ["Basic YTpi", "Bearer of-the-app", None] == [
        environ.get("HTTP_AUTHORIZATION") for environ in seen
    ]


def test_every_key_is_compared(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """However early one fits, so that the time tells nothing."""
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    counts = []
    for key in (KEYS["web"], KEYS["reader"], "wrong"):
        compared.clear()
        send(X_API_Key=key)
        counts.append(len(compared))

    assert [len(KEYS)] * 3 == counts


@pytest.mark.parametrize(
    ("headers", "facts"),
    [
        ({"X_API_Key": "wrong"}, {"reason": "the key is unknown"}),
        ({"X_API_Key": KEYS["ended"]}, {"reason": "the key has expired", "client": "ended"}),
        (
            {"X_API_Key": KEYS["shop"]},
            {"reason": "the client may not use this endpoint", "client": "shop", "status": 403},
        ),
        (
            {"Authorization": "Bearer stale"},
            {"reason": "expired_token exp", "client": "oidc:ada"},
        ),
        (
            {"Authorization": "Bearer forged"},
            {"reason": "bad_signature", "claimed_client": "ada"},
        ),
        ({}, {"reason": "no key was sent"}),
    ],
)
def test_a_refusal_is_logged_without_the_key(
    send: Send, caplog: pytest.LogCaptureFixture, headers: dict[str, str], facts: dict[str, Any]
) -> None:
    """One line, with the client's name where it is known; what a forged token says is no name."""
    send(**headers)

    (record,) = caplog.records
    names = ("client", "claimed_client", "reason", "status")
    found = {name: value for name, value in vars(record).items() if name in names}
    assert {"status": 401} | facts == found
    assert not [key for key in (*headers.values(), *KEYS.values()) if key in str(vars(record))]


# -- in a host ----------------------------------------------------------------------------------


@pytest.fixture(name="shop")
def _shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of an endpoint that shows what it sees of a request."""
    folder = tmp_path / "corp" / "shop"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    (folder / "blueprint.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    yield "corp.shop"
    for name in list(sys.modules):
        if name.partition(".")[0] == "corp":
            del sys.modules[name]


@pytest.fixture(name="closed")
def _closed(shop: str, write_tenant: Callable[..., Path], host: Host, client: HttpClient) -> Send:
    """Return a function that sends a request with a key to a tenant that has clients."""
    write_tenant("acme", BLUEPRINTS=["landing", shop], CLIENTS=FILE)
    write_tenant("globex")
    host.load()

    def send(path: str, key: str, method: str = "GET", **options: Any) -> TestResponse:
        return client.open(
            path, method=method, headers={"X-API-Key": KEYS.get(key, key)}, **options
        )

    return send


def test_a_url_belongs_to_the_endpoint_that_answers_it(closed: Send) -> None:
    """Routed as the app routes it; what no endpoint answers, the app answers by itself."""
    expected = {
        ("GET", "/acme/shop/7"): 200,
        ("HEAD", "/acme/shop/7"): 200,
        ("POST", "/acme/shop/"): 200,
        ("GET", "/acme//shop/7"): 200,
        ("GET", "/acme/%73hop/7"): 200,
        ("GET", "/acme/"): 403,
        ("GET", "/acme/shop/seven"): 404,
        ("GET", "/acme/shop/../"): 404,
        ("POST", "/acme/shop/7"): 405,
        ("POST", "/acme/shop"): 308,
        ("GET", "/acme"): 308,
    }
    seen: list[str] = []
    overrides = {"test.seen": seen}

    found = {
        (method, path): closed(path, "shop", method, environ_overrides=overrides).status_code
        for method, path in expected
    }

    assert (expected, len(expected) - 1) == (found, len(seen))  # one never reached the app


def test_the_app_sees_the_client_and_not_its_key(closed: Send) -> None:
    """Neither in its headers nor anywhere else in the environ."""
    response = closed("/acme/shop/7", "shop")

    assert ("shop", False) == (response.get_json()["client"], KEYS["shop"] in response.text)


def test_a_body_of_a_refused_client_is_not_read(
    shop: str, write_tenant: Callable[..., Path], host: Host
) -> None:
    """A stranger's upload costs nothing."""
    write_tenant("acme", BLUEPRINTS=[shop], CLIENTS=FILE)
    host.load()

    class Unread:
        def read(self, *_: object) -> bytes:
            pytest.fail("the body was read")

    overrides = {"wsgi.input": Unread(), "wsgi.input_terminated": True, "CONTENT_LENGTH": ""}

    response = HttpClient(host).post("/acme/shop/", environ_overrides=overrides)

    assert 401 == response.status_code


def test_an_open_tenant_keeps_its_own_authorization(
    shop: str, write_tenant: Callable[..., Path], host: Host, client: HttpClient
) -> None:
    """Without clients there is no gate: its headers are the app's business."""
    write_tenant("acme", BLUEPRINTS=[shop])
    host.load()
    environ = {"tenantry.client": "open"}

    response = client.get(
        "/acme/shop/7", headers={"Authorization": "Bearer mine"}, environ_overrides=environ
    )

    assert "Bearer mine" == response.get_json()["headers"]["Authorization"]


def test_a_key_of_one_tenant_is_worth_nothing_at_another(
    write_tenant: Callable[..., Path], host: Host, client: HttpClient
) -> None:
    """Each tenant knows its own clients only."""
    for name in ("acme", "globex"):
        write_tenant(name, CLIENTS={"web": hash_client_key(f"key of {name}")})
    host.load()

    statuses = {
        (at, of): client.get(f"/{at}/", headers={"X-API-Key": f"key of {of}"}).status_code
        for at in ("acme", "globex")
        for of in ("acme", "globex")
    }

    assert [201, 401, 401, 201] == list(statuses.values())


def test_lines_of_a_request_name_its_client(
    closed: Send, shop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is logged during the request; here the app fails."""
    del shop
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    configure_logging("json", "info")
    try:
        response = closed("/acme/fail", "shop")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (500, [("acme", "shop")]) == (
        response.status_code,
        [(line["tenant"], line["client"]) for line in lines],
    )


@pytest.mark.live
def test_behind_a_real_server(
    write_tenant: Callable[..., Path], start_server: Callable[..., Server]
) -> None:
    """A header comes as the gate reads it, or not at all, and twice is no key."""
    write_tenant("acme", CLIENTS={"web": FILE["web"]})
    server = start_server(["gunicorn", "-c", CONFIG_FILE, "--workers", "1", "--bind", "{bind}"])
    key = KEYS["web"]
    head = "GET /acme/ HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n"
    requests = [
        f"Authorization: Bearer {key}\r\n",
        f"X-API-Key: {key}\r\n",
        f"X_API_Key: {key}\r\n",
        f"Authorization: Bearer {key}\r\nAuthorization: Bearer {key}\r\n",
        "",
    ]

    answers = [server.send(f"{head}{headers}\r\n".encode()) for headers in requests]

    assert [b"201", b"201", b"401", b"401", b"401"] == [one.split()[1] for one in answers]
    assert key not in server.log.read_text()
