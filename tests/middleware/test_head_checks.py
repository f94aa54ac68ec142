"""The checks of a request's head: their order, and that each runs once per request."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from werkzeug.test import Client, create_environ, run_wsgi_app

from call_count import counting_calls
from tenantry.host import Host
from tenantry.http.environ import CLIENT, RATE_HEADERS
from tenantry.http.problem import Refusal
from tenantry.middleware.authentication import CLAIMS, Authentication
from tenantry.middleware.body_limit import BodyLimit
from tenantry.middleware.failed_attempts import FailedAttempts
from tenantry.middleware.head_checks import HeadCheck, HeadChecks
from tenantry.middleware.rate_limit import RateLimit, RateLimiter
from tenantry.middleware.trusted_hosts import TrustedHosts
from tenantry.tenants.clients import hash_client_key, parse_clients

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

KEY = "tenantry_key_of_the_web_client"
LIMIT = 20
BASE_URL = "http://acme.test/"


def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Answer 200 with the client in the environ and the client in the log context."""
    in_log = structlog.contextvars.get_contextvars().get("client")
    start_response("200 OK", [])
    return [f"{environ.get(CLIENT)} {in_log}".encode()]


def authentication(verify: Any = None, **limits: object) -> Authentication:
    """Return a check that accepts `KEY` and no other key."""
    clients = parse_clients({"web": {"key": hash_client_key(KEY)} | limits}, "acme", None)
    return Authentication(
        tenant="acme",
        realm="/acme",
        clients=clients,
        verify=verify,
        endpoint_of=lambda _: "shop",
        attempts=FailedAttempts(),
    )


def rate(text: str = "1/hour") -> RateLimit:
    """Return a check of a rate in memory."""
    return RateLimit(RateLimiter("memory://"), "acme", text)


def all_checks() -> HeadChecks:
    """Return an app behind every check."""
    checks = [TrustedHosts(("acme.test",)), authentication(), rate()]
    return HeadChecks(app, "acme", checks, BodyLimit(LIMIT))


def environ_of(**changes: str) -> "WSGIEnvironment":
    """Return the environ of a request that every check accepts, with changes."""
    accepted = {"HTTP_X_API_KEY": KEY, "CONTENT_LENGTH": str(LIMIT)}
    return create_environ("/", BASE_URL, method="POST") | accepted | changes


def status_of(refusal: Refusal | None) -> int:
    """Return the status of a refusal, or 200."""
    return 200 if refusal is None else refusal[0].status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 429),
        ({"CONTENT_LENGTH": "21"}, 429),
        ({"HTTP_X_API_KEY": "wrong", "CONTENT_LENGTH": "21"}, 401),
        ({"HTTP_X_API_KEY": "wrong", "HTTP_HOST": "evil.test"}, 400),
    ],
)
def test_the_first_check_that_refuses_decides(changes: dict[str, str], status: int) -> None:
    """The order of the checks is host name, key, rate, declared length."""
    checks = all_checks()
    checks.refuse(environ_of())  # this request uses up the rate

    assert status == status_of(checks.refuse(environ_of(**changes)))


def test_only_requests_of_accepted_clients_count_for_the_rate() -> None:
    """Requests with a wrong host name or a wrong key leave the rate to the tenant's clients."""
    checks = all_checks()
    for changes in ({"HTTP_HOST": "evil.test"}, {"HTTP_X_API_KEY": "wrong"}):
        checks.refuse(environ_of(**changes))

    assert [200, 429] == [status_of(checks.refuse(environ_of())) for _ in range(2)]


def test_strangers_do_not_use_up_the_rate_of_a_tenants_clients(
    write_tenant: Callable[..., object], host: Host, client: Client
) -> None:
    """After more refused requests than the rate, a client with a key still gets an answer."""
    write_tenant("acme", RATE_LIMIT="2/hour", CLIENTS={"web": hash_client_key(KEY)})
    host.load()

    strangers = [client.get("/acme/").status_code for _ in range(3)]
    own = [client.get("/acme/", headers={"X-API-Key": KEY}).status_code for _ in range(3)]

    assert ([401, 401, 401], [201, 201, 429]) == (strangers, own)


def test_a_counted_request_that_is_too_large_has_the_rate_headers() -> None:
    """A 413 after the count of the rate has `RateLimit` headers."""
    refusal = all_checks().refuse(environ_of(CONTENT_LENGTH="21"))

    assert refusal is not None
    assert (413, "RateLimit-Limit") == (refusal[0].status, refusal[1][0][0])


def test_the_layer_does_not_repeat_checks_that_the_server_made() -> None:
    """After `refuse`, the layer calls the app without counting or checking the key again."""
    checks = all_checks()
    environ = environ_of()
    refusal = checks.refuse(environ)

    body, status, headers = run_wsgi_app(checks, environ, buffered=True)

    assert (None, "200 OK", [b"web web"]) == (refusal, status, list(body))
    assert "0" == headers["RateLimit-Remaining"]


def test_the_layer_repeats_a_refusal_of_the_server() -> None:
    """A request that `refuse` refused gets the same response from the layer."""
    checks = all_checks()
    environ = environ_of(HTTP_X_API_KEY="wrong")
    refusal = checks.refuse(environ)

    _, status, _ = run_wsgi_app(checks, environ, buffered=True)

    assert (401, "401 UNAUTHORIZED".lower()) == (status_of(refusal), status.lower())
    assert refusal is checks.refuse(environ)


def test_refuse_leaves_the_log_context_unchanged() -> None:
    """`refuse` leaves no log context on the thread that calls it."""
    all_checks().refuse(environ_of())

    assert {} == structlog.contextvars.get_contextvars()


def test_checks_of_another_tenant_do_not_count() -> None:
    """If the address has moved to another tenant since the check, that tenant checks again."""
    environ = environ_of(HTTP_HOST="globex.test")
    HeadChecks(app, "globex", [authentication(), rate()], BodyLimit(LIMIT)).refuse(environ)
    closed = HeadChecks(app, "acme", [TrustedHosts(("acme.test",))], BodyLimit(LIMIT))
    open_to_all = HeadChecks(app, "initech", [], BodyLimit(LIMIT))
    environ.pop("CONTENT_LENGTH")

    body, status, _ = run_wsgi_app(open_to_all, environ.copy(), buffered=True)

    assert ("200 OK", [b"None None"]) == (status, list(body))
    assert 400 == status_of(closed.refuse(environ))
    assert not {CLIENT, CLAIMS, RATE_HEADERS} & set(environ)


@pytest.mark.parametrize(
    ("check", "is_quick"),
    [
        (TrustedHosts(()), True),
        (authentication(), True),
        (authentication(methods=["GET"]), True),
        (authentication(endpoints=["shop"]), False),
        (authentication(verify=lambda _: {}), False),
        (rate(), True),
    ],
)
def test_quick_checks_neither_wait_nor_run_code_of_the_app(
    check: HeadCheck, *, is_quick: bool
) -> None:
    """Checks of tokens and of endpoints are not quick: they wait, or run code of the app."""
    assert is_quick == HeadChecks(app, "acme", [TrustedHosts(()), check], BodyLimit(0)).is_quick


def test_a_rate_in_redis_is_not_quick() -> None:
    """A rate check in Redis is not quick, because the request waits for Redis."""
    rates = RateLimiter("redis://localhost:1")

    is_quick = RateLimit(rates, "acme", "1/hour").is_quick
    rates.close()

    assert not is_quick


def test_without_checks_the_layer_costs_one_call() -> None:
    """A request without a body to a tenant without limits of its own passes through one call."""
    layer = HeadChecks(lambda *_: [], "acme", [], BodyLimit(LIMIT))
    environ = create_environ("/")

    with counting_calls() as calls:
        layer(environ, pytest.fail)

    assert {"middleware.head_checks.HeadChecks.__call__": 1} == dict(calls)


def test_an_instance_gives_access_to_its_head_checks(
    write_tenant: Callable[..., object], host: Host, client: Client
) -> None:
    """The mount's instance gives a server access to the head checks of the tenant."""
    write_tenant("acme", MAX_CONTENT_LENGTH=LIMIT)
    host.load()
    client.get("/acme/")

    instance = host.router.mounts[0].instance

    assert instance is not None
    assert instance.head_checks is not None
    refusal = instance.head_checks.refuse(environ_of(CONTENT_LENGTH="21"))
    assert (True, 413) == (instance.head_checks.is_quick, status_of(refusal))


def test_a_chunked_body_without_a_known_length_gets_411() -> None:
    """Under a server that does not decode chunks, such as uWSGI, a chunked body gets 411."""
    environ = environ_of(CONTENT_LENGTH="", HTTP_TRANSFER_ENCODING="chunked")

    _, status, _ = run_wsgi_app(all_checks(), environ, buffered=True)

    assert "411 Length Required" == status


# -- caching ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "caching"),
    [
        (None, "private"),
        ("max-age=60", "max-age=60,private"),
        ("no-cache", "no-cache,private"),
        ("private, max-age=60", "private, max-age=60"),
        ("PUBLIC", "PUBLIC"),
        ("no-store", "no-store"),
        ("s-maxage=60", "s-maxage=60"),
        ("x-public", "x-public,private"),
    ],
)
def test_a_response_to_a_client_with_a_key_is_not_for_others(
    sent: str | None, caching: str
) -> None:
    """A shared cache stores a response to a request with a key only if the app says so."""

    def cacheable(_: object, start_response: Any) -> list[bytes]:
        headers = [("Vary", "Accept"), *([("Cache-Control", sent)] if sent else [])]
        start_response("200 OK", headers)
        return []

    layer = HeadChecks(cacheable, "acme", [authentication()], BodyLimit(LIMIT))

    _, _, headers = run_wsgi_app(layer, environ_of(), buffered=True)

    assert caching == ",".join(headers.getlist("Cache-Control"))
    assert ["Accept", "Authorization, X-API-Key"] == headers.getlist("Vary")


def test_a_response_of_an_open_tenant_can_be_cached() -> None:
    """Without `CLIENTS` and `OIDC`, the caching headers are the app's own."""
    layer = HeadChecks(app, "acme", [rate()], BodyLimit(LIMIT))

    _, _, headers = run_wsgi_app(layer, environ_of(), buffered=True)

    assert [False, False] == [name in headers for name in ("Cache-Control", "Vary")]
