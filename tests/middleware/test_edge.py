"""The edge finds the app that answers a request. In these tests, apps are short functions."""

import json
import socket
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

from tenantry.http.environ import CONNECTION, IS_FOR_OPERATORS, REQUEST_ID, TARGET, TENANT
from tenantry.middleware.edge import Edge
from tenantry.middleware.forwarded import ForwardedHeaders

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def tenants(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Answer on the tenants' listener with the facts that the app sees."""
    seen = {
        "side": "tenants",
        "request_id": environ[REQUEST_ID],
        "header": environ["HTTP_X_REQUEST_ID"],
        "user": environ.get("HTTP_REMOTE_USER"),
        "script_name": environ["SCRIPT_NAME"],
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(seen).encode()]


def operators(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Answer on the operators' listener."""
    del environ
    start_response("200 OK", [("Content-Type", "application/json")])
    return [b'{"side": "operators"}']


def answering(edge: Edge) -> "WSGIApplication":
    """Return an app that answers with the target that the edge finds."""

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        edge.route(environ)
        body: Iterable[bytes] = environ[TARGET](environ, start_response)
        return body

    return app


EDGE = Edge(lambda _: tenants, operators, None)
APP = answering(EDGE)


@pytest.fixture(name="client")
def _client() -> Client:
    """Return a client of an edge without an admin listener."""
    return Client(APP)


# -- the request's id ------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", ["a", "A.b-c_9", "x" * 128])
def test_a_valid_request_id_is_kept(client: Client, sent: str) -> None:
    """The host and the app get the client's ID."""
    seen = client.get("/", headers={"X-Request-ID": sent}).get_json()

    assert [seen["request_id"], seen["header"]] == [sent, sent]


@pytest.mark.parametrize("sent", [None, "", "a b", "a\tb", "x" * 129, "ä", "a,b", "٣"])
def test_an_invalid_request_id_is_replaced(client: Client, sent: str | None) -> None:
    """The host and the app get a new ID of 32 hexadecimal digits."""
    environ = {} if sent is None else {"HTTP_X_REQUEST_ID": sent}

    seen = client.get("/", environ_overrides=environ).get_json()

    assert (16, seen["header"]) == (len(bytes.fromhex(seen["request_id"])), seen["request_id"])


def test_each_request_gets_its_own_id(client: Client) -> None:
    """Ten requests without an ID get ten different IDs."""
    ids = {client.get("/").get_json()["request_id"] for _ in range(10)}

    assert len(ids) == 10


# -- refused requests ----------------------------------------------------------------------------


def _status(app: "WSGIApplication", **environ: Any) -> int:
    """Return the status for a GET with the given environ keys.

    A key with value None is left out.
    """
    request = EnvironBuilder("/").get_environ() | environ
    kept = {key: value for key, value in request.items() if value is not None}
    return int(run_wsgi_app(app, kept, buffered=True)[1].split()[0])


@pytest.mark.parametrize(
    "host",
    [
        *(
            "acme.test",
            "ACME.test",
            "acme.test:8000",
            "acme.test:65535",
            "acme.test.",
            "acme.test:",
            "a",
            "1.2.3.4",
        ),
        *("[::1]", "[::1]:80", "[::ffff:1.2.3.4]", "my_service:80", "a" * 253),
    ],
)
def test_a_valid_host_header_passes(host: str) -> None:
    """Names, addresses and ports that RFC 9110 allows are accepted."""
    assert _status(APP, HTTP_HOST=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            " ",
            "a b",
            "a/b",
            "a@b",
            "a/b@c",
            "a,b",
            "a\\b",
            "a?b",
            "a#b",
            "a%b",
            "<a>",
            "ä.test",
        ),
        *(".a", "-a", "a:x", "a:-1", "a:65536", "a:99999999", "a:80:80", "a:٣", "a\n"),
        *("[]", "[::1", "::1", "[::1]x", "[v1.x]", "a" * 254),
    ],
)
def test_an_invalid_host_header_is_400(host: str) -> None:
    """A `Host` header that could change the target of a URL built from the header gets 400."""
    assert _status(APP, HTTP_HOST=host) == 400


@pytest.mark.parametrize(("protocol", "status"), [("HTTP/1.1", 400), ("HTTP/1.0", 200)])
def test_http_1_1_needs_a_host(protocol: str, status: int) -> None:
    """Only HTTP/1.0 allows a request without `Host` (RFC 9112 §3.2)."""
    assert _status(APP, HTTP_HOST=None, SERVER_PROTOCOL=protocol) == status


@pytest.mark.parametrize(
    ("key", "value", "status"),
    [
        ("REQUEST_METHOD", "CONNECT", 405),
        ("wsgi.url_scheme", "https", 200),
        ("wsgi.url_scheme", "javascript", 400),
        ("SCRIPT_NAME", None, 200),
        ("SCRIPT_NAME", "/p/q-1", 200),
        ("SCRIPT_NAME", "//evil.test", 400),
        ("SCRIPT_NAME", "https://evil.test", 400),
        ("SCRIPT_NAME", "p", 400),
        ("SCRIPT_NAME", "/p//q", 400),
        ("SCRIPT_NAME", "/\\evil.test", 400),
        ("SCRIPT_NAME", "/p\n", 400),
        ("SCRIPT_NAME", "/..", 400),
        ("SCRIPT_NAME", "/p/../q", 400),
        ("SCRIPT_NAME", "/./p", 400),
        ("SCRIPT_NAME", "/p/%2e%2e", 400),
        ("SCRIPT_NAME", "/.well-known/..p/p..", 200),
    ],
)
def test_an_unsafe_method_scheme_or_prefix_is_refused(
    key: str, value: str | None, status: int
) -> None:
    """CONNECT gets 405; a scheme other than HTTP's and a prefix that is not a path get 400."""
    assert _status(APP, **{key: value}) == status


def test_a_refusal_is_a_problem_document_with_an_id(client: Client) -> None:
    """The edge's own response is a problem document with the ID of the request."""
    answer = client.get("/", headers={"Host": "a/b@c", "X-Request-ID": "mine"})

    assert answer.mimetype == "application/problem+json"
    assert json.loads(answer.data)["request_id"] == "mine"


def test_a_405_lists_the_allowed_methods(client: Client) -> None:
    """A 405 has the `Allow` header (RFC 9110 §15.5.6)."""
    answer = client.open("/", method="CONNECT")

    assert answer.headers["Allow"] == "GET, HEAD, POST, PUT, PATCH, DELETE"


def test_remote_user_is_removed(client: Client) -> None:
    """Apps never see a `Remote-User` header, because any client can send such a header."""
    assert client.get("/", headers={"Remote-User": "admin"}).get_json()["user"] is None


def test_a_trailing_slash_of_a_prefix_is_removed(client: Client) -> None:
    """The common `X-Forwarded-Prefix: /p/` means `/p`."""
    answer = client.get("/", environ_overrides={"SCRIPT_NAME": "/p/"})

    assert answer.get_json()["script_name"] == "/p"


@pytest.mark.parametrize(
    ("is_behind_proxies", "host", "method", "status"),
    [
        (False, "a/b@c", "GET", 200),
        (False, "a", "CONNECT", 405),
        (True, "a/b@c", "GET", 400),
    ],
)
def test_what_the_server_has_checked_is_not_checked_again(
    is_behind_proxies: bool, host: str, method: str, status: int
) -> None:
    """Tenantry's worker checks the host; the edge checks what a proxy may have changed."""
    forwarded = ForwardedHeaders(1, ["for"]) if is_behind_proxies else None
    edge = Edge(lambda _: tenants, operators, None, forwarded=forwarded)
    keys = {CONNECTION: object(), "HTTP_HOST": host, "REQUEST_METHOD": method}

    assert status == _status(answering(edge), **keys)


# -- tenants or operators ------------------------------------------------------------------------


def test_the_edge_returns_whose_request_it_is() -> None:
    """The edge returns the tenant, or an empty string for the host, or None for operators."""

    def route(environ: "WSGIEnvironment") -> Any:
        if environ["PATH_INFO"] == "/acme":
            environ[TENANT] = "acme"
        return tenants

    edge = Edge(route, operators, None)
    environs = [EnvironBuilder(path).get_environ() for path in ("/acme", "/other", "/acme")]
    environs[2][IS_FOR_OPERATORS] = True

    assert ["acme", "", None] == [edge.route(environ) for environ in environs]
    assert [tenants, tenants, operators] == [environ[TARGET] for environ in environs]


@pytest.fixture(name="connection")
def _connection() -> Iterator[socket.socket]:
    """Return the server's end of a TCP connection on the loopback."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        connection, _ = listener.accept()
        with connection:
            yield connection


@pytest.mark.parametrize(
    ("address", "port_offset", "is_admin"),
    [
        ("127.0.0.1", 0, True),
        ("0.0.0.0", 0, True),
        ("127.0.0.1", 1, False),
        ("127.0.0.2", 0, False),
    ],
)
def test_the_listener_decides_the_side(
    connection: socket.socket, address: str, port_offset: int, is_admin: bool
) -> None:
    """Only the listener with the address and port of the admin listener is for operators."""
    local = connection.getsockname()
    edge = Edge(lambda _: tenants, operators, (address, local[1] + port_offset))

    assert is_admin == edge.is_admin(local)
    assert not EDGE.is_admin(local)


def test_a_unix_socket_is_for_tenants() -> None:
    """The address of a UNIX socket is a text, never the operators' address."""
    edge = Edge(lambda _: tenants, operators, ("127.0.0.1", 8001))

    assert [False, False] == [edge.is_admin(local) for local in ("/run/a.sock", b"")]


def test_a_host_header_does_not_reach_operators_pages() -> None:
    """The admin port in `Host` has no effect on another listener or under another server."""
    client = Client(answering(Edge(lambda _: tenants, operators, ("127.0.0.1", 8001))))

    answer = client.get("/", base_url="http://127.0.0.1:8001")

    assert answer.get_json()["side"] == "tenants"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("127.0.0.1:8001", "[::1]:8001", "192.0.2.7", "10.0.0.1.")),
        *((host, 200) for host in ("localhost", "LOCALHOST.", "localhost:8001", None)),
        *((host, 200) for host in ("ops.example.org:443", "OPS.example.org", "a.internal:1")),
        *((host, 400) for host in ("evil.test", "evil.test:8001", "127.0.0.1.evil.test")),
        *((host, 400) for host in ("a.localhost", "localhost.evil.test", "1.2.3", "x", "")),
    ],
)
def test_operators_pages_answer_only_to_known_names(host: str | None, status: int) -> None:
    """The operators' listener answers to addresses, `localhost` and `ADMIN_HOSTS` only.

    With any other name, a website could read the operators' pages by DNS rebinding.
    """
    names = ("ops.example.org", ".internal")
    app = answering(Edge(lambda _: tenants, operators, None, admin_hosts=names))

    found = _status(app, HTTP_HOST=host, SERVER_PROTOCOL="HTTP/1.0", **{IS_FOR_OPERATORS: True})

    assert status == found


def test_a_forwarded_host_does_not_open_operators_pages() -> None:
    """Operators' pages ignore `X-Forwarded-Host`, which a script on a website can send."""
    forwarded = ForwardedHeaders(1, ["for", "proto", "host", "port", "prefix"])
    app = answering(Edge(lambda _: tenants, operators, None, forwarded=forwarded))
    sent = {"HTTP_HOST": "evil.test", "HTTP_X_FORWARDED_HOST": "localhost"}

    assert _status(app, **sent, **{IS_FOR_OPERATORS: True}) == 400
