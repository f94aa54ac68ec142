"""Authentication of a tenant's clients: the check alone, and in a host."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client as HttpClient
from werkzeug.test import TestResponse

from servers import CONFIG_FILE, Server, wait_until
from tenantry.host import Host
from tenantry.middleware.authentication import (
    CLAIMS,
    CLIENT,
    Authentication,
    IssuerDownError,
    TokenRefusedError,
)
from tenantry.middleware.body_limit import BodyLimit
from tenantry.middleware.failed_attempts import MAX_ATTEMPTS, FailedAttempts
from tenantry.middleware.head_checks import HeadChecks
from tenantry.observability.logging import configure_logging
from tenantry.tenants.clients import Clients, hash_client_key, parse_clients

KEYS = {name: f"tenantry_{name * 8}" for name in ("web", "old", "new", "ended", "shop", "reader")}
FILE = {
    "web": hash_client_key(KEYS["web"]),
    "rotating": [hash_client_key(KEYS["new"]), hash_client_key(KEYS["old"])],
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
    """Stand in for the token check: the token's text selects the outcome."""
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


def checked(app: Callable[..., Any], check: Authentication) -> HeadChecks:
    """Return an app that only accepted clients reach."""
    return HeadChecks(app, "acme", [check], BodyLimit(0))


Send = Callable[..., TestResponse]


@pytest.fixture(name="seen")
def _seen() -> list[dict[str, Any]]:
    """Return the environs with which the app was called."""
    return []


@pytest.fixture(name="send")
def _send(seen: list[dict[str, Any]]) -> Send:
    """Return a function that sends a request with the given headers through the tested layer."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(environ)
        start_response("200 OK", [("Content-Length", "0")])
        return []

    def endpoint_of(environ: dict[str, Any]) -> str | None:
        return {"/shop/": "corp.shop", "/static/x": "", "/": "landing"}.get(environ["PATH_INFO"])

    def send(
        path: str = "/", method: str = "GET", *, file: Any = None, **headers: str
    ) -> TestResponse:
        check = Authentication(
            tenant="acme",
            realm="/acme",
            clients=clients(**(file or {})),
            verify=None if file else verify,
            endpoint_of=endpoint_of,
            attempts=FailedAttempts(),
        )
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return HttpClient(checked(app, check)).open(path, method=method, headers=named)

    return send


def answer(response: TestResponse) -> tuple[int, str | None]:
    """Return the status of a response and the challenge without the realm."""
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
def test_a_valid_key_is_accepted_and_removed(
    send: Send, seen: list[dict[str, Any]], header: str, value: str
) -> None:
    """The app gets the client's name, and the environ does not contain the key."""
    response = send(**{header: value.format(KEYS["web"])})

    assert (200, ["web"]) == (response.status_code, [environ[CLIENT] for environ in seen])
    assert KEYS["web"] not in str(seen)


@pytest.mark.parametrize("key", ["old", "new"])
def test_both_keys_are_accepted_during_a_rotation(
    send: Send, seen: list[dict[str, Any]], key: str
) -> None:
    """A client with an old and a new key can use each key until the operator removes that key."""
    send(X_API_Key=KEYS[key])

    assert ["rotating"] == [environ[CLIENT] for environ in seen]


@pytest.mark.parametrize(
    ("headers", "challenge"),
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
def test_a_request_without_a_valid_key_is_401(
    send: Send, seen: list[dict[str, Any]], headers: dict[str, str], challenge: str | None
) -> None:
    """The response is a problem document with a challenge (RFC 6750 §3); the app is not called."""
    response = send(**headers)

    assert (401, challenge, []) == (*answer(response), seen)
    assert "application/problem+json" == response.content_type
    assert response.headers["WWW-Authenticate"].startswith('Bearer realm="/acme"')


@pytest.mark.parametrize(
    ("key", "method", "path", "expected"),
    [
        ("shop", "GET", "/shop/", (200, None)),
        ("shop", "GET", "/", (403, SCOPE)),
        ("shop", "GET", "/static/x", (403, SCOPE)),
        ("shop", "GET", "/nothing", (200, None)),  # the request is admitted, so the app answers 404
        ("reader", "GET", "/", (200, None)),
        ("reader", "HEAD", "/", (200, None)),
        ("reader", "POST", "/", (403, SCOPE)),
        ("reader", "OPTIONS", "/", (403, SCOPE)),
        ("web", "DELETE", "/", (200, None)),
    ],
)
def test_a_limited_key_works_for_its_endpoints_and_methods(
    send: Send, key: str, method: str, path: str, expected: tuple[int, str | None]
) -> None:
    """A valid key gets 403 for endpoints and methods that the client may not use."""
    assert expected == answer(send(path, method, X_API_Key=KEYS[key]))


def test_a_preflight_is_refused() -> None:
    """A CORS preflight gets 401, because a preflight without a key would run the app for anyone."""
    check = Authentication(
        tenant="acme",
        realm="/acme",
        clients=clients(),
        verify=None,
        endpoint_of=pytest.fail,
        attempts=FailedAttempts(),
    )
    layer = checked(pytest.fail, check)
    headers = {"Origin": "https://else.test", "Access-Control-Request-Method": "GET"}

    assert 401 == HttpClient(layer).options("/", headers=headers).status_code


def test_a_key_is_refused_from_its_expiry_on() -> None:
    """A key works until one second before the expiry, and is refused from the expiry on."""
    ends = clients(web={"key": FILE["web"], "expires": "2027-01-31T00:00Z"})
    moment = ends.all[0].expires
    assert moment is not None
    now = [moment.timestamp() - 1]
    check = Authentication(
        tenant="acme",
        realm="/acme",
        clients=ends,
        verify=None,
        endpoint_of=pytest.fail,
        attempts=FailedAttempts(),
        clock=lambda: now[0],
    )
    layer = checked(lambda _, start: start("200 OK", []) and [], check)
    statuses = []
    for _ in range(2):
        statuses.append(HttpClient(layer).get("/", headers={"X-API-Key": KEYS["web"]}).status_code)
        now[0] += 1

    assert [200, 401] == statuses


def test_a_token_is_accepted_beside_keys(send: Send, seen: list[dict[str, Any]]) -> None:
    """The app gets the claims but not the token, and the name `oidc:ada` cannot be a client's."""
    send(Authorization=f"Bearer {TOKEN}")

    assert [("oidc:ada", "shop")] == [(one[CLIENT], one[CLAIMS]["role"]) for one in seen]
    assert TOKEN not in str(seen)


def test_an_issuer_that_is_down_is_503(send: Send) -> None:
    """If the token cannot be verified now, the client gets 503 with `Retry-After`."""
    response = send(Authorization="Bearer down")

    assert (503, "7") == (response.status_code, response.headers["Retry-After"])


def test_authorization_passes_beside_an_api_key(send: Send, seen: list[dict[str, Any]]) -> None:
    """With `X-API-Key`, the app gets `Authorization`, unless a client's key is in the header."""
    for value in ("Basic YTpi", "Bearer of-the-app", f"Bearer {KEYS['new']}"):
        send(X_API_Key=KEYS["web"], Authorization=value)

    assert ["Basic YTpi", "Bearer of-the-app", None] == [
        environ.get("HTTP_AUTHORIZATION") for environ in seen
    ]


def test_a_url_that_the_app_fails_to_match_is_500(caplog: pytest.LogCaptureFixture) -> None:
    """An exception of the app during the search for an endpoint is logged, and becomes a 500."""

    def exit_at_once(_: object) -> str | None:
        raise SystemExit(3)

    check = Authentication(
        tenant="acme",
        realm="/acme",
        clients=clients(),
        verify=None,
        endpoint_of=exit_at_once,
        attempts=FailedAttempts(),
    )

    response = HttpClient(checked(pytest.fail, check)).get("/", headers={"X-API-Key": KEYS["shop"]})

    assert 500 == response.status_code
    assert ["endpoint.match_failed", "client.refused"] == [one.message for one in caplog.records]


def test_every_key_is_compared(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is compared with all keys, so the response time reveals nothing."""
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
    """The log line has a verified client's name as `client`, and a forged token's as `claimed`."""
    send(**headers)

    (record,) = caplog.records
    names = ("client", "claimed_client", "reason", "status")
    found = {name: value for name, value in vars(record).items() if name in names}
    assert {"status": 401} | facts == found
    assert not [key for key in (*headers.values(), *KEYS.values()) if key in str(vars(record))]


# -- in a host ----------------------------------------------------------------------------------


@pytest.fixture(name="shop")
def _shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of an endpoint that returns the parts of a request that an app sees."""
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
    """Authentication finds the endpoint as Flask does; URLs of no endpoint reach the app."""
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

    assert (expected, len(expected) - 1) == (found, len(seen))  # one of the two refusals is a 403


def test_the_app_sees_the_client_and_not_its_key(closed: Send) -> None:
    """A view gets the client's name, and the key is not in the request's headers."""
    response = closed("/acme/shop/7", "shop")

    assert ("shop", False) == (response.get_json()["client"], KEYS["shop"] in response.text)


def test_a_body_of_a_refused_client_is_not_read(
    shop: str, write_tenant: Callable[..., Path], host: Host
) -> None:
    """A request without a key is refused before the host reads the body."""
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
    """For a tenant without clients, `Authorization` reaches the app unchanged."""
    write_tenant("acme", BLUEPRINTS=[shop])
    host.load()
    environ = {"tenantry.client": "open"}

    response = client.get(
        "/acme/shop/7", headers={"Authorization": "Bearer mine"}, environ_overrides=environ
    )

    assert "Bearer mine" == response.get_json()["headers"]["Authorization"]


def test_a_key_of_another_tenant_is_401(
    write_tenant: Callable[..., Path], host: Host, client: HttpClient
) -> None:
    """Each of two tenants accepts only the key of the tenant's own client."""
    for name in ("acme", "globex"):
        write_tenant(name, CLIENTS={"web": hash_client_key(f"key of {name}")})
    host.load()

    statuses = {
        (at, of): client.get(f"/{at}/", headers={"X-API-Key": f"key of {of}"}).status_code
        for at in ("acme", "globex")
        for of in ("acme", "globex")
    }

    assert [201, 401, 401, 201] == list(statuses.values())


def test_log_lines_of_a_request_name_its_client(
    closed: Send, shop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line that is logged during the request has the client's name."""
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
def test_keys_are_read_correctly_behind_gunicorn(
    write_tenant: Callable[..., Path], start_server: Callable[..., Server]
) -> None:
    """A header with underscores, and a header sent twice, do not count as a key."""
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
    wait_until(lambda: 5 == server.log.read_text().count("request.ended"))
    assert key not in server.log.read_text()


# -- failed attempts -------------------------------------------------------------------------------


def test_a_client_without_a_valid_key_is_slowed_down(
    write_tenant: Callable[..., object], host: Host, client: HttpClient
) -> None:
    """Above the limit, a wrong key gets 429, but a valid key from the same address is admitted."""
    write_tenant("acme", CLIENTS={"web": FILE["web"]})
    write_tenant("globex", CLIENTS={"web": hash_client_key("tenantry_" + "g" * 30)})
    host.load()
    wrong = [
        client.get("/acme/", headers={"X-API-Key": f"guess-{number}"})
        for number in range(MAX_ATTEMPTS + 1)
    ]

    right = client.get("/acme/", headers={"X-API-Key": KEYS["web"]})
    without_key = client.get("/acme/")
    from_elsewhere = client.get("/acme/", environ_overrides={"REMOTE_ADDR": "192.0.2.1"})
    elsewhere = client.get("/globex/")

    assert [401] * MAX_ATTEMPTS + [429] == [one.status_code for one in wrong]
    assert 1 <= int(wrong[-1].headers["Retry-After"]) <= 60
    assert [201, 429] == [right.status_code, without_key.status_code]
    assert [401, 401] == [from_elsewhere.status_code, elsewhere.status_code]


def test_a_valid_token_gets_in_over_the_bound(caplog: pytest.LogCaptureFixture) -> None:
    """A client with a token is not locked out by wrong tokens from the same address."""
    check = Authentication(
        tenant="acme",
        realm="/acme",
        clients=None,
        verify=verify,
        endpoint_of=pytest.fail,
        attempts=FailedAttempts(),
    )
    layer = checked(lambda _, start: start("200 OK", []) and [], check)

    def statuses(token: str, count: int) -> list[int]:
        headers = {"Authorization": f"Bearer {token}"}
        return [HttpClient(layer).get("/", headers=headers).status_code for _ in range(count)]

    assert {401, 429} == {*statuses("forged", MAX_ATTEMPTS + 9)}
    assert [200] == statuses(TOKEN, 1)
    assert MAX_ATTEMPTS == len(caplog.records)
