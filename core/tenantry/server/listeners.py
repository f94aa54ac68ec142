"""Whether listeners can be opened, asked before gunicorn, which would try for five seconds."""

import os
import socket
import stat
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click

from tenantry.errors import TenantryError

_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound

UNIX_PATH_BYTES = 107
"""What the kernel takes for the path of a socket, its final zero left out (unix(7))."""


@dataclass(frozen=True)
class Listener:
    """Where gunicorn is to listen."""

    source: str
    """The option or variable that says so."""
    bind: str
    """`HOST:PORT` or `unix:PATH`."""

    @property
    def address(self) -> tuple[str, int]:
        """Host without brackets, and port."""
        host, _, port = self.bind.rpartition(":")
        return ("127.0.0.1" if host == "localhost" else host.strip("[]")), int(port)


def check_listeners(listeners: Iterable[Listener]) -> None:
    """Open all of them at once, and close them again.

    Raises:
        click.UsageError: two are one.
        TenantryError: one cannot be opened; names the option or variable that asks for it.
    """
    opened: list[Listener] = []
    with ExitStack() as sockets:
        for listener in listeners:
            for other in opened:
                _check_apart(other, listener)
            try:
                if listener.bind.startswith("unix:"):
                    _check_unix_socket(Path(listener.bind.removeprefix("unix:")))
                else:
                    sockets.enter_context(_listen(listener))
                    opened.append(listener)
            except OSError as error:
                reason = error.strerror or str(error)
                raise TenantryError(
                    f"{listener.source}: cannot listen on {listener.bind}: {reason}; name another."
                ) from error


def _check_apart(one: Listener, other: Listener) -> None:
    (host, port), (other_host, other_port) = one.address, other.address
    is_one = host == other_host or not {host, other_host}.isdisjoint(_EVERY_ADDRESS)
    if port == other_port and is_one:
        raise click.UsageError(
            f"{one.source} {one.bind} and {other.source} {other.bind} are the same listener; "
            "name another port for one of them."
        )


def _listen(listener: Listener) -> socket.socket:
    host, port = listener.address
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    probe = socket.socket(family)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)  # two that are only bound may have one port
    except BaseException:
        probe.close()
        raise
    return probe


def _check_unix_socket(path: Path) -> None:
    """Check what gunicorn would find out late: that the folder is there and may be written."""
    if not path.parent.is_dir():
        raise OSError(0, f"there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OSError(0, f"the folder {path.parent} cannot be written")
    if len(os.fsencode(path)) > UNIX_PATH_BYTES:
        raise OSError(0, f"its path is longer than {UNIX_PATH_BYTES} bytes")
    try:
        is_socket = stat.S_ISSOCK(path.stat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise OSError(0, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(os.fspath(path))
        except OSError:
            return  # left behind by a server that has ended: gunicorn replaces it
    raise OSError(0, "another server listens there")
