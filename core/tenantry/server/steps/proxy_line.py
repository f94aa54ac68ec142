"""The PROXY line, in which a TCP proxy sends the address of its client.

The line precedes the first request, and holds for its whole connection (PROXY protocol of HAProxy,
versions 1 and 2). Only a peer in gunicorn's `proxy_allow_ips` may send a PROXY line.
"""

import ipaddress
import re
import struct
from http import HTTPStatus
from typing import TYPE_CHECKING

from tenantry.http.request_head import BadRequestError
from tenantry.server.connection import Connection

if TYPE_CHECKING:
    from tenantry.server.environ import EnvironTemplate

_V1_BYTES = 107
"""Maximum bytes of a line of version 1, with its line end (PROXY protocol §2.1)."""

_V1_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?"
    rb"|(TCP[46]) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4}))"
)

_MAX_PORT = 65_535

_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_HEADER = struct.Struct("!12sBBH")  # signature, version and command, family, length of the rest
_V2_FAMILIES = {0x11: ("TCP4", 4), 0x21: ("TCP6", 16)}
_V2_LOCAL, _V2_PROXY = 0x20, 0x21


def read_proxy_line(connection: Connection, template: "EnvironTemplate") -> bool:
    """Remove the PROXY line from the start of a new connection's buffer.

    Return False if more bytes have to arrive first.

    Raises:
        BadRequestError: the line is missing or malformed, or the peer may not send such a line.
    """
    data, mode = connection.buffer, template.proxy_mode
    for signature, version in ((_V2_SIGNATURE, "v2"), (b"PROXY ", "v1")):
        if mode not in (version, "auto") or not signature.startswith(data[: len(signature)]):
            continue
        if len(data) < len(signature):
            return False
        if not template.is_proxy_trusted(connection.peer):
            raise BadRequestError(HTTPStatus.FORBIDDEN, "A PROXY line is not allowed here.")
        return (_read_v2 if version == "v2" else _read_v1)(connection, data)
    raise _malformed()  # the receiver must not guess whether there is a line (§2)


def _read_v1(connection: Connection, data: bytes) -> bool:
    end = data.find(b"\r\n", 0, _V1_BYTES)
    if end < 0:
        if len(data) >= _V1_BYTES:
            raise _malformed()
        return False
    match = _V1_LINE.fullmatch(data[:end])
    if match is None:
        raise _malformed()
    if match[1] is not None:
        _note(connection, *(word.decode() for word in match.groups()))
    connection.buffer, connection.has_proxy_line = data[end + 2 :], True
    return True


def _read_v2(connection: Connection, data: bytes) -> bool:
    if len(data) < _V2_HEADER.size:
        return False
    _, command, family, size = _V2_HEADER.unpack_from(data)
    end = _V2_HEADER.size + size
    if command not in (_V2_LOCAL, _V2_PROXY):
        raise _malformed()
    if len(data) < end:
        return False
    if command == _V2_PROXY and family in _V2_FAMILIES:
        name, address_bytes = _V2_FAMILIES[family]
        if size < 2 * address_bytes + 4:
            raise _malformed()
        rest = data[_V2_HEADER.size : end]
        source, target = rest[:address_bytes], rest[address_bytes : 2 * address_bytes]
        ports = struct.unpack_from("!HH", rest, 2 * address_bytes)
        addresses = [str(ipaddress.ip_address(one)) for one in (source, target)]
        _note(connection, name, *addresses, *map(str, ports))
    connection.buffer, connection.has_proxy_line = data[end:], True
    return True


def _note(connection: Connection, *words: str) -> None:
    family, source, target, source_port, target_port = words
    version = {"TCP4": 4, "TCP6": 6}[family]
    for address, port in ((source, source_port), (target, target_port)):
        try:
            is_valid = ipaddress.ip_address(address).version == version
        except ValueError:
            is_valid = False
        if not is_valid or int(port) > _MAX_PORT:
            raise _malformed()
    connection.proxied = {
        "PROXY_PROTOCOL": family,
        "REMOTE_ADDR": source,
        "REMOTE_PORT": source_port,
        "PROXY_ADDR": target,
        "PROXY_PORT": target_port,
    }


def _malformed() -> BadRequestError:
    return BadRequestError(HTTPStatus.BAD_REQUEST, "The PROXY line is malformed.")
