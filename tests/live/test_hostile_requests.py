"""A real server handles malformed and hostile requests safely.

The tenant acme serves, and the tenant globex is in maintenance, so a 503 from globex reveals a
misrouted request. Responses of the host are problem documents; responses of acme are not.
"""

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

import pytest

from conftest import tenant_text
from servers import CONFIG_FILE, DEADLINE_S, free_port, running

pytestmark = pytest.mark.live

Address = tuple[str, int] | str
HOST = b"Host: acme.test"
COMMAND = ["gunicorn", "-c", CONFIG_FILE, "--workers", "1", "--bind", "{bind}"]


@dataclass(frozen=True)
class Answer:
    """One response of the server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def by(self) -> str:
        """The author of the response: the `host`, or `acme`, the only tenant that serves."""
        is_problem = self.headers["content-type"] == "application/problem+json"
        return "host" if is_problem else "acme"


def send(address: Address, data: bytes) -> Answer:
    """Send raw bytes, close the sending side, and return the first response."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect(address)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.closing(HTTPResponse(connection)) as response:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())


def get(address: Address, target: bytes, *headers: bytes) -> Answer:
    """Send one GET, with a valid `Host` unless `headers` contains one."""
    is_named = any(header.lower().startswith(b"host:") for header in headers)
    lines = [b"GET " + target + b" HTTP/1.1", *([] if is_named else [HOST]), *headers, b"", b""]
    return send(address, b"\r\n".join(lines))


def _write_tenants(folder: Path) -> None:
    (folder / "tenants").mkdir()
    (folder / "tenants" / "acme.py").write_text(tenant_text("acme"))
    (folder / "tenants" / "globex.py").write_text(tenant_text("globex", MAINTENANCE="astray"))


@pytest.fixture(name="admin_port", scope="module")
def _admin_port() -> int:
    return free_port()


@pytest.fixture(name="listeners", scope="module")
def _listeners(
    tmp_path_factory: pytest.TempPathFactory, admin_port: int
) -> Iterator[dict[str, Address]]:
    """Return the addresses of a server's two listeners for tenants: TCP and a UNIX socket."""
    folder = tmp_path_factory.mktemp("hostile")
    _write_tenants(folder)
    path = str(folder / "tenantry.sock")
    admin_bind = f"127.0.0.1:{admin_port}"
    command = [*COMMAND, "--bind", f"unix:{path}", "--bind", admin_bind]
    with running(command, folder, "/-/readyz", TENANTRY_ADMIN_BIND=admin_bind) as server:
        yield {"tcp": ("127.0.0.1", server.port), "unix": path}


@pytest.fixture(name="tcp")
def _tcp(listeners: dict[str, Address]) -> Address:
    return listeners["tcp"]


@pytest.fixture(name="unix")
def _unix(listeners: dict[str, Address]) -> Address:
    return listeners["unix"]


@pytest.fixture(name="address", params=["tcp", "unix"])
def _each_listener(request: pytest.FixtureRequest, listeners: dict[str, Address]) -> Address:
    """Return the address of each listener: first TCP, and then a UNIX socket.

    By default, gunicorn trusts clients that connect to a UNIX socket.
    """
    return listeners[request.param]


@pytest.fixture(name="proxied", scope="module")
def _proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """Return the address of a server that trusts one proxy and one host name."""
    folder = tmp_path_factory.mktemp("proxied")
    _write_tenants(folder)
    settings = {
        "TENANTRY_TRUSTED_PROXIES": "1",
        "TENANTRY_TRUSTED_HEADERS": "for,proto,host,port,prefix",
        "TENANTRY_TRUSTED_HOSTS": "acme.test",
    }
    with running(COMMAND, folder, "/-/readyz", **settings) as server:
        yield "127.0.0.1", server.port


# -- routing of paths ----------------------------------------------------------------------------

NOT_FOUND = (404, "host")
MALFORMED = (400, "host")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/acme/", (201, "acme")),
        (b"/acme//", (201, "acme")),
        (b"/acme" + b"/" * 4000, (201, "acme")),
        (b"/%61cme/", (201, "acme")),
        (b"http://evil.test/acme/", (201, "acme")),
        (b"/acme//x", (404, "acme")),
        (b"/acme%2fx", (404, "acme")),
        (b"/acme/../globex/", (404, "acme")),
        (b"/acme/..%2fglobex/", (404, "acme")),
        (b"/acme/%2e%2e/globex/", (404, "acme")),
        (b"/acme/%252e%252e/globex/", (404, "acme")),
        (b"/acme/..;/globex/", (404, "acme")),
        (b"/acme/\\..\\globex", (404, "acme")),
        (b"/acme/%00", (404, "acme")),
        (b"/acme/%ff", (404, "acme")),
        (b"/acme/%0d%0aX:1", (404, "acme")),
        (b"/", NOT_FOUND),
        (b"/" * 4000, NOT_FOUND),
        (b"//acme", NOT_FOUND),
        (b"//acme/x", NOT_FOUND),
        (b"//globex/", NOT_FOUND),
        (b"/./acme/", NOT_FOUND),
        (b"/../acme/", NOT_FOUND),
        (b"/x/../acme/", NOT_FOUND),
        (b"/%2facme/", NOT_FOUND),
        (b"/acme;p=1/x", NOT_FOUND),
        (b"/acme%20/", NOT_FOUND),
        (b"/acme%00/", NOT_FOUND),
        (b"/acmefoo", NOT_FOUND),
        (b"/ACME/", NOT_FOUND),
        (b"/caf%C3%A9", NOT_FOUND),
        (b"/-/admin/", NOT_FOUND),
        (b"http://evil.test", NOT_FOUND),
        (b"", MALFORMED),
        (b"*", MALFORMED),
        (b"acme", MALFORMED),
        (b"acme:80", MALFORMED),
        (b"/caf\xc3\xa9", MALFORMED),
        (b"/acme/\x00", MALFORMED),
        (b"/acme/\t", MALFORMED),
        (b"/acme/ x", MALFORMED),
        (b"/" + b"a" * 8200, (414, "host")),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else None,
)
def test_a_path_reaches_its_tenant_or_none(
    tcp: Address, target: bytes, expected: tuple[int, str]
) -> None:
    """A path reaches the tenant acme only if its first segment is `acme` after decoding once."""
    answer = get(tcp, target)

    assert (answer.status, answer.by) == expected


# -- malformed requests ----------------------------------------------------------------------------


def _request(first_line: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([first_line, HOST, *headers, b"", b""])


def _with(*headers: bytes) -> bytes:
    return _request(b"POST /acme/ HTTP/1.1", *headers) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(_request(b"OPTIONS * HTTP/1.1"), 404, id="OPTIONS *"),
        pytest.param(_request(b"CONNECT acme.test:80 HTTP/1.1"), 405, id="CONNECT"),
        pytest.param(_request(b"CONNECT /acme/ HTTP/1.1"), 405, id="CONNECT with a path"),
        pytest.param(_request(b"get /acme/ HTTP/1.1"), 400, id="lower-case method"),
        pytest.param(_request(b"GET /acme/ HTTP/2.0"), 400, id="HTTP/2.0"),
        pytest.param(_request(b"GET /acme/ HTTP/0.9"), 400, id="HTTP/0.9"),
        pytest.param(_request(b"GET /acme/"), 400, id="no version"),
        pytest.param(b"\r\n\r\n", 400, id="empty lines"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="HTTP/2 preface"),
        pytest.param(b"GET /acme/ HTTP/1.1\nHost: a\n\n", 400, id="bare LF"),
        pytest.param(b"GET /acme/ HTTP/1.1\r\nHost: a\n\n", 400, id="bare LF later"),
        pytest.param(b"GET /acme/ HTTP/1.1\r\n\r\n", 400, id="no Host"),
        pytest.param(_with(b"Host: acme.test"), 400, id="two Hosts"),
        pytest.param(_with(b"Transfer-Encoding: chunked", b"Content-Length: 5"), 400, id="TE + CL"),
        pytest.param(_with(b"Content-Length: 5", b"Content-Length: 6"), 400, id="two CL"),
        pytest.param(_with(b"Content-Length: 5, 5"), 400, id="CL list"),
        pytest.param(_with(b"Content-Length: +5"), 400, id="CL +5"),
        pytest.param(_with(b"Content-Length: -5"), 400, id="CL -5"),
        pytest.param(_with(b"Content-Length: \xb2"), 400, id="CL superscript two"),
        pytest.param(_with(b"Content-Length: " + b"9" * 5000), 400, id="CL of 5,000 digits"),
        pytest.param(_with(b"Transfer-Encoding: xchunked"), 501, id="unknown TE"),
        pytest.param(_with(b"Transfer-Encoding: identity"), 400, id="TE identity"),
        pytest.param(_with(b"Transfer-Encoding: chunked, identity"), 400, id="TE not last"),
        pytest.param(_with(b"Transfer-Encoding: chunked, chunked"), 400, id="TE twice"),
        pytest.param(_with(b"X: a", b" b"), 400, id="obs-fold"),
        pytest.param(_with(b"X : a"), 400, id="space before colon"),
        pytest.param(_with(b"nonsense"), 400, id="no colon"),
        pytest.param(_with(b": a"), 400, id="no name"),
        pytest.param(_with(b"X: a\x00b"), 400, id="NUL"),
        pytest.param(_with(b"X: a\rb"), 400, id="bare CR"),
        pytest.param(_with(b"Expect: much"), 417, id="unknown Expect"),
        pytest.param(_with(b"X: " + b"a" * 8200), 431, id="header of 8,200 bytes"),
        pytest.param(_with(*[b"X: a"] * 101), 431, id="101 headers"),
        pytest.param(_with(*[b"X_: a"] * 60_000), 431, id="60,000 headers to drop"),
        pytest.param(_with(b"X: " + b"a" * 200_000), 431, id="header of 200,000 bytes"),
    ],
)
def test_a_malformed_request_is_refused(tcp: Address, data: bytes, status: int) -> None:
    """A request that two servers could interpret differently is refused."""
    answer = send(tcp, data)

    assert (answer.status, answer.by) == (status, "host")
    problem = json.loads(answer.body)
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "host",
    [
        *(b"", b"a/b@c", b"user@acme.test", b"a b", b"a,b", b"acme.test/", b"acme.test?x", b"-a"),
        *(b"acme.test:99999999", b"acme.test:65536", b"acme.test:80:80", b".."),
        *(b"acme.test:+80", b"\xe4.test", b"[::1", b"[evil.test]", b"a" * 300),
    ],
)
def test_a_malformed_host_is_refused(tcp: Address, host: bytes) -> None:
    """A `Host` that is not a host name and port gets 400 without a `Location`."""
    answer = get(tcp, b"/acme", b"Host: " + host)

    assert (answer.status, answer.by, answer.headers.get("location")) == (400, "host", None)


@pytest.mark.parametrize(
    ("target", "host", "location"),
    [
        (b"/acme", b"evil.test", "/acme/"),
        (b"/acme", b"evil.test:8000", "/acme/"),
        (b"/acme", b"[::1]:8000", "/acme/"),
        (b"/acme", b"[::1]", "/acme/"),
        (b"/acme", b"evil_test.", "/acme/"),
        (b"/acme?x=/globex", b"evil.test", "/acme/?x=/globex"),
        (b"/acme?x=%0d%0aX:1", b"evil.test", "/acme/?x=%0d%0aX:1"),
        (b"http://evil.test/acme", b"evil.test", "/acme/"),
    ],
)
def test_a_redirect_does_not_echo_the_host(
    tcp: Address, target: bytes, host: bytes, location: str
) -> None:
    """A redirect is relative, whatever `Host` the client sends."""
    answer = get(tcp, target, b"Host: " + host)

    assert (answer.status, answer.headers["location"]) == (308, location)
    assert b"evil" not in answer.body


# -- headers that a client must not control ------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        *(b"SCRIPT_NAME: /acme", b"SCRIPT_NAME: /evil", b"Script-Name: /acme"),
        *(b"X-Script-Name: /acme", b"PATH_INFO: /globex/", b"Path-Info: /globex/"),
        *(b"X-Original-URL: /globex/", b"X-Rewrite-URL: /globex/", b"REMOTE_USER: admin"),
        *(b"Remote-User: admin", b"X-Forwarded-Prefix: /acme", b"X-Forwarded-Host: evil.test"),
        *(b"X_Forwarded_Prefix: /acme", b"X-Forwarded-Proto: https", b"Forwarded: host=evil.test"),
        *(b"X-HTTP-Method-Override: DELETE", b"X-Forwarded-Host: a/b@c"),
    ],
)
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/acme/globex/", (404, "acme", None)),
        (b"/acme", (308, "acme", "/acme/")),
    ],
)
def test_a_clients_headers_do_not_change_routing(
    address: Address, header: bytes, target: bytes, expected: tuple[int, str, str | None]
) -> None:
    """No header can send a request to another tenant, or redirect it to another host."""
    answer = get(address, target, header)

    assert (answer.status, answer.by, answer.headers.get("location")) == expected


def test_a_port_in_the_host_does_not_open_the_operators_pages(
    unix: Address, admin_port: int
) -> None:
    """On a UNIX socket, a port in the `Host` header does not open the operators' pages."""
    answer = get(unix, b"/-/readyz", b"Host: 127.0.0.1:%d" % admin_port)

    assert (answer.status, "mounts" in json.loads(answer.body)) == (200, False)


@pytest.mark.parametrize("target", [b"/acme/", b"/nobody/"])
@pytest.mark.parametrize("sent", [b"a", b"A.b-c_9", b"x" * 128])
def test_a_clients_request_id_is_kept(tcp: Address, target: bytes, sent: bytes) -> None:
    """The host returns a client's request ID if it has 1 to 128 characters of `[A-Za-z0-9._-]`."""
    answer = get(tcp, target, b"X-Request-ID: " + sent)

    assert answer.headers["x-request-id"] == sent.decode()


@pytest.mark.parametrize("target", [b"/acme/", b"/nobody/"])
@pytest.mark.parametrize("sent", [b"", b"a b", b"x" * 129, b"\xe4", b'"', b"a\r\nX-Request-ID: b"])
def test_an_invalid_request_id_is_replaced(tcp: Address, target: bytes, sent: bytes) -> None:
    """A request ID that could forge a log line is replaced with an ID of the host."""
    answer = get(tcp, target, b"X-Request-ID: " + sent)

    assert len(answer.headers["x-request-id"]) == 32


# -- behind a trusted proxy -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status", "location"),
    [
        ([b"X-Forwarded-Prefix: /p"], 308, "/p/acme/"),
        ([b"X-Forwarded-Prefix: /p/"], 308, "/p/acme/"),
        ([b"X-Forwarded-Prefix: /evil, /p"], 308, "/p/acme/"),
        ([b"X-Forwarded-Prefix: /"], 308, "/acme/"),
        ([b"X-Forwarded-Proto: https"], 308, "/acme/"),
        ([b"Host: 10.0.0.1:8000", b"X-Forwarded-Host: acme.test"], 308, "/acme/"),
        ([b"X-Forwarded-Host: evil.test"], 400, None),
        ([b"X-Forwarded-Host: a/b@c"], 400, None),
        ([b"X-Forwarded-Port: x"], 400, None),
        ([b"X-Forwarded-Proto: javascript"], 400, None),
        ([b"X-Forwarded-Prefix: //evil.test"], 400, None),
        ([b"X-Forwarded-Prefix: /p/.."], 400, None),
        ([b"X-Forwarded-Prefix: https://evil.test"], 400, None),
        ([b"SCRIPT_NAME: /p"], 308, "/acme/"),
    ],
)
def test_headers_of_a_trusted_proxy_are_used(
    proxied: Address, headers: list[bytes], status: int, location: str | None
) -> None:
    """Behind a trusted proxy, the host uses the proxy's prefix, host and scheme if valid."""
    answer = get(proxied, b"/acme", *headers)

    assert (answer.status, answer.headers.get("location")) == (status, location)
