"""The PROXY line of a TCP proxy in front, in versions 1 and 2 of the protocol."""

import socket
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from tenantry.http.request_head import BadRequestError
from tenantry.server.steps.proxy_line import read_proxy_line

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 80\r\n"
V1_IPV6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 1234 80\r\n"
FACTS = {
    "PROXY_PROTOCOL": "TCP4", "REMOTE_ADDR": "192.0.2.7", "REMOTE_PORT": "1234",
    "PROXY_ADDR": "192.0.2.1", "PROXY_PORT": "80",
}  # fmt: skip
FACTS_IPV6 = FACTS | {
    "PROXY_PROTOCOL": "TCP6", "REMOTE_ADDR": "2001:db8::7", "PROXY_ADDR": "2001:db8::1",
}  # fmt: skip


def v2(family: int, *addresses: str, command: int = 0x21, more: bytes = b"") -> bytes:
    """Return a header of version 2."""
    kind = socket.AF_INET6 if family == 0x21 else socket.AF_INET
    rest = b"".join(socket.inet_pton(kind, one) for one in addresses)
    rest += struct.pack("!HH", 1234, 80) + more
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


V2 = v2(0x11, "192.0.2.7", "192.0.2.1")
V2_IPV6 = v2(0x21, "2001:db8::7", "2001:db8::1", more=b"\x04\x00\x01x")
V2_LOCAL = SIGNATURE + struct.pack("!BBH", 0x20, 0, 0)
V2_UNIX = SIGNATURE + struct.pack("!BBH", 0x21, 0x31, 4) + b"path"


def new_connection(data: bytes) -> Any:
    """Return a stand-in for a connection from 192.0.2.1."""
    return SimpleNamespace(buffer=data, peer=("192.0.2.1", 1), proxied={}, has_proxy_line=False)


def template(mode: str = "auto", trusted: str = "192.0.2.1") -> Any:
    """Return a stand-in for the template of a listener."""
    return SimpleNamespace(proxy_mode=mode, is_proxy_trusted=lambda peer: peer[0] == trusted)


LINES: list[tuple[str, bytes, dict[str, str]]] = [
    ("v1", V1, FACTS),
    ("v1", V1_IPV6, FACTS_IPV6),
    ("v1", b"PROXY UNKNOWN\r\n", {}),
    ("v1", b"PROXY UNKNOWN ffff:f 1 2 3\r\n", {}),
    ("v2", V2, FACTS),
    ("v2", V2_IPV6, FACTS_IPV6),
    ("v2", V2_LOCAL, {}),
    ("v2", V2_UNIX, {}),
]


@pytest.mark.parametrize(("version", "line", "facts"), LINES)
def test_a_line_tells_the_client(version: str, line: bytes, facts: dict[str, str]) -> None:
    """A PROXY line sets environ keys, and the bytes after it are the first request."""
    for mode in (version, "auto"):
        connection = new_connection(line + b"GET")

        assert read_proxy_line(connection, template(mode))
        assert (facts, b"GET", True) == (
            connection.proxied, connection.buffer, connection.has_proxy_line,
        )  # fmt: skip


@pytest.mark.parametrize(("version", "line", "_"), LINES)
def test_a_line_may_arrive_byte_by_byte(version: str, line: bytes, _: object) -> None:
    """The server waits for the rest of an incomplete PROXY line."""
    for end in range(len(line)):
        connection = new_connection(line[:end])

        assert not read_proxy_line(connection, template(version))
        assert line[:end] == connection.buffer


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n",
        b"\n",
        b"proxy TCP4 192.0.2.7 192.0.2.1 1234 80\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1234\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 80 \r\n",
        b"PROXY  TCP4 192.0.2.7 192.0.2.1 1234 80\r\n",
        b"PROXY TCP4 192.0.2.777 192.0.2.1 1234 80\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 1234 80\r\n",
        b"PROXY TCP6 192.0.2.7 192.0.2.1 1234 80\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 65536 80\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 -1 80\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1_2 80\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 01 80\r\n",
        b"PROXY TCP4 \xb2 192.0.2.1 1 80\r\n",
        b"PROXY UDP4 192.0.2.7 192.0.2.1 1 80\r\n",
        b"PROXY " + b"x" * 200,
        V2[:12] + b"\x11" + V2[13:],
        SIGNATURE + struct.pack("!BBH", 0x21, 0x11, 4) + b"1234",
    ],
)
def test_a_malformed_or_missing_line_is_refused(line: bytes) -> None:
    """A malformed or missing PROXY line gets 400, because an address must not be guessed."""
    with pytest.raises(BadRequestError) as caught:
        read_proxy_line(new_connection(line), template())

    assert 400 == caught.value.status


@pytest.mark.parametrize(("mode", "line"), [("v1", V2), ("v2", V1)])
def test_the_other_version_is_refused(mode: str, line: bytes) -> None:
    """A listener for one version of the PROXY protocol refuses lines of the other version."""
    with pytest.raises(BadRequestError):
        read_proxy_line(new_connection(line), template(mode))


@pytest.mark.parametrize("line", [V1, V2])
def test_a_stranger_may_not_send_a_line(line: bytes) -> None:
    """A PROXY line from a peer that is not trusted gets 403."""
    connection = new_connection(line)

    with pytest.raises(BadRequestError) as caught:
        read_proxy_line(connection, template(trusted="192.0.2.9"))

    assert (403, {}) == (caught.value.status, connection.proxied)
