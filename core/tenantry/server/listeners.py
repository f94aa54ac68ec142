"""Checks listeners before gunicorn opens them.

gunicorn tries for five seconds to open a listener, and then logs an error that does not name the
option or variable.
"""

import itertools
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tenantry.errors import TenantryError

_ALL_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104 - these addresses are compared, not bound

UNIX_PATH_BYTES = 107
"""Longest path of a Unix socket on Linux, without the final zero byte (unix(7))."""


class SameListenerError(TenantryError):
    """Two options or variables name the same listener."""


@dataclass(frozen=True)
class Listener:
    """An address on which gunicorn listens."""

    source: str
    """The option or variable that sets the address, for messages."""
    bind: str
    """`HOST:PORT` or `unix:PATH`."""

    @property
    def address(self) -> tuple[str, int]:
        """The host of the listener without brackets, and the port."""
        host, _, port = self.bind.rpartition(":")
        return ("127.0.0.1" if host == "localhost" else host.strip("[]")), int(port)


def check_listeners(listeners: Sequence[Listener]) -> None:
    """Open all listeners at once, and close all listeners again.

    Raises:
        SameListenerError: Two listeners have the same address.
        TenantryError: A listener cannot be opened; the text names the option or variable.
    """
    on_tcp = [listener for listener in listeners if not listener.bind.startswith("unix:")]
    for one, other in itertools.combinations(on_tcp, 2):
        _check_differ(one, other)
    with ExitStack() as sockets:
        for listener in listeners:
            try:
                if listener in on_tcp:
                    sockets.enter_context(_listen(listener))
                else:
                    _check_unix_socket(Path(listener.bind.removeprefix("unix:")))
            except OSError as error:
                reason = error.strerror or str(error)
                raise TenantryError(
                    f"{listener.source}: cannot listen on {listener.bind}: {reason}; "
                    "choose another address."
                ) from error


def _check_differ(one: Listener, other: Listener) -> None:
    (host, port), (other_host, other_port) = one.address, other.address
    is_same_host = host == other_host or not {host, other_host}.isdisjoint(_ALL_ADDRESSES)
    if port == other_port and is_same_host:
        raise SameListenerError(
            f"{one.source} {one.bind} and {other.source} {other.bind} are the same listener; "
            "choose another port for one of them."
        )


def _listen(listener: Listener) -> socket.socket:
    host, port = listener.address
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    probe = socket.socket(family)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)  # with SO_REUSEADDR, two sockets may be bound to one port
    except BaseException:
        probe.close()
        raise
    return probe


def _check_unix_socket(path: Path) -> None:
    """Check that gunicorn can create a Unix socket at `path`, and that no server listens there."""
    if not path.parent.is_dir():
        raise OSError(0, f"there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OSError(0, f"the folder {path.parent} is not writable")
    if len(os.fsencode(path)) > UNIX_PATH_BYTES:
        raise OSError(0, f"its path is longer than {UNIX_PATH_BYTES} bytes")
    try:
        is_socket = stat.S_ISSOCK(path.stat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise OSError(0, "the path exists and is not a socket")
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(os.fspath(path))
        except OSError:
            return  # an ended server left the socket, which gunicorn replaces
    raise OSError(0, "another server listens there")
