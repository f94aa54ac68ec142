"""The edge layer, on WSGI functions of a few lines."""

import json
import socket
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

from tenantry.http.environ import REQUEST_ID
from tenantry.middleware.edge import Edge

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def tenants(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Return what reaches the tenants' side."""
    seen = {
        "side": "tenants",
        "request_id": environ[REQUEST_ID],
        "header": environ["HTTP_X_REQUEST_ID"],
        "user": environ.get("HTTP_REMOTE_USER"),
        "script_name": environ["SCRIPT_NAME"],
    }
    start_response("200 OK", [("Content-Type", "application/json"), ("x-request-id", "mine")])
    return [json.dumps(seen).encode()]


def operators(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Answer for the operators' side."""
    del environ
    start_response("200 OK", [("Content-Type", "application/json")])
    return [b'{"side": "operators"}']


@pytest.fixture(name="client")
def _client() -> Client:
    """Return a client of an edge without an admin listener."""
    return Client(Edge(tenants, operators, None))


# -- the request's id ------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", ["a", "A.b-c_9", "x" * 128])
def test_a_valid_request_id_is_kept(client: Client, sent: str) -> None:
    """The app and the response get the client's ID, and the response has no other."""
    answer = client.get("/", headers={"X-Request-ID": sent})

    seen = answer.get_json()
    assert [seen["request_id"], seen["header"]] == [sent, sent]
    assert answer.headers.getlist("X-Request-ID") == [sent]


@pytest.mark.parametrize("sent", [None, "", "a b", "a\tb", "x" * 129, "ä", "a,b", "٣"])
def test_an_invalid_request_id_is_replaced(client: Client, sent: str | None) -> None:
    """The app and the response get a new ID of 32 hexadecimal digits."""
    environ = {} if sent is None else {"HTTP_X_REQUEST_ID": sent}

    answer = client.get("/", environ_overrides=environ)

    request_id = answer.headers["X-Request-ID"]
    assert (len(bytes.fromhex(request_id)), answer.get_json()["header"]) == (16, request_id)


def test_each_request_gets_its_own_id(client: Client) -> None:
    """Ten requests without an ID get ten different ones."""
    ids = {client.get("/").headers["X-Request-ID"] for _ in range(10)}

    assert len(ids) == 10


def test_exc_info_is_passed_to_the_server() -> None:
    """The edge passes `exc_info` on, because the server decides whether headers can be replaced."""
    error = ValueError("late")
    started: list[Any] = []

    def app(_: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        start_response("500 Oh", [], (ValueError, error, error.__traceback__))  # type: ignore[arg-type]
        return []

    environ = EnvironBuilder("/").get_environ()
    Edge(app, operators, None)(environ, lambda *head: started.extend(head))  # type: ignore[arg-type]

    assert (started[0], started[2]) == ("500 Oh", (ValueError, error, None))


# -- refused requests ----------------------------------------------------------------------------


def _status(app: "WSGIApplication", **environ: Any) -> int:
    """Return the status for a GET with the given environ keys.

    A key with value None is left out.
    """
    request = EnvironBuilder("/").get_environ() | environ
    kept = {key: value for key, value in request.items() if value is not None}
    return int(run_wsgi_app(app, kept, buffered=True)[1].split()[0])


EDGE = Edge(tenants, operators, None)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "acme.test",
            "ACME.test",
            "acme.test:8000",
            "acme.test:65535",
            "acme.test.",
            "a",
            "1.2.3.4",
        ),
        *("[::1]", "[::1]:80", "[::ffff:1.2.3.4]", "my_service:80", "a" * 253),
    ],
)
def test_a_valid_host_header_passes(host: str) -> None:
    """Names, addresses and ports that RFC 9110 allows are accepted."""
    assert _status(EDGE, HTTP_HOST=host) == 200


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
        *(".a", "-a", "a:", "a:x", "a:-1", "a:65536", "a:99999999", "a:80:80", "a:٣", "a\n"),
        *("[]", "[::1", "::1", "[::1]x", "[v1.x]", "a" * 254),
    ],
)
def test_an_invalid_host_header_is_400(host: str) -> None:
    """A `Host` header that could change the target of a URL built from the header gets 400."""
    assert _status(EDGE, HTTP_HOST=host) == 400


@pytest.mark.parametrize(("protocol", "status"), [("HTTP/1.1", 400), ("HTTP/1.0", 200)])
def test_http_1_1_needs_a_host(protocol: str, status: int) -> None:
    """Only HTTP/1.0 allows a request without `Host` (RFC 9112 §3.2)."""
    assert _status(EDGE, HTTP_HOST=None, SERVER_PROTOCOL=protocol) == status


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
    ],
)
def test_an_unsafe_method_scheme_or_prefix_is_refused(
    key: str, value: str | None, status: int
) -> None:
    """CONNECT gets 405; a scheme other than HTTP's and a prefix that is not a path get 400."""
    assert _status(EDGE, **{key: value}) == status


def test_a_refusal_is_a_problem_document_with_an_id(client: Client) -> None:
    """The edge's own response has the request ID in a header and in the body."""
    answer = client.get("/", headers={"Host": "a/b@c", "X-Request-ID": "mine"})

    assert (answer.mimetype, answer.headers["X-Request-ID"]) == ("application/problem+json", "mine")
    assert json.loads(answer.data)["request_id"] == "mine"


def test_a_405_lists_the_allowed_methods(client: Client) -> None:
    """A 405 has the `Allow` header (RFC 9110 §15.5.6)."""
    answer = client.open("/", method="CONNECT")

    assert answer.headers["Allow"] == "GET, HEAD, POST, PUT, PATCH, DELETE"


def test_remote_user_is_removed(client: Client) -> None:
    """Apps never see a `Remote-User` header, because any client can send one."""
    assert client.get("/", headers={"Remote-User": "admin"}).get_json()["user"] is None


def test_a_trailing_slash_of_a_prefix_is_removed(client: Client) -> None:
    """The common `X-Forwarded-Prefix: /p/` means `/p`."""
    answer = client.get("/", environ_overrides={"SCRIPT_NAME": "/p/"})

    assert answer.get_json()["script_name"] == "/p"


# -- tenants or operators ------------------------------------------------------------------------


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
    ("address", "port_offset", "side"),
    [
        ("127.0.0.1", 0, "operators"),
        ("0.0.0.0", 0, "operators"),
        ("127.0.0.1", 1, "tenants"),
        ("127.0.0.2", 0, "tenants"),
    ],
)
def test_the_listener_decides_the_side(
    connection: socket.socket, address: str, port_offset: int, side: str
) -> None:
    """Operators' pages answer on the address and port of the admin listener only."""
    admin = (address, connection.getsockname()[1] + port_offset)
    client = Client(Edge(tenants, operators, admin))

    answer = client.get("/", environ_overrides={"gunicorn.socket": connection})

    assert answer.get_json()["side"] == side


@pytest.mark.parametrize("has_unix_socket", [True, False])
def test_a_host_header_does_not_reach_operators_pages(has_unix_socket: bool) -> None:
    """The admin port in `Host` has no effect on a UNIX socket or under another server."""
    client = Client(Edge(tenants, operators, ("127.0.0.1", 8001)))
    one, other = socket.socketpair()
    with one, other:
        environ = {"gunicorn.socket": one} if has_unix_socket else {}

        answer = client.get("/", base_url="http://127.0.0.1:8001", environ_overrides=environ)

    assert answer.get_json()["side"] == "tenants"
