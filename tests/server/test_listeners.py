"""Tenantry checks listeners before gunicorn opens the listeners."""

import socket
from pathlib import Path

from tenantry.server.listeners import Listener, check_listeners


def test_a_stale_unix_socket_is_accepted(tmp_path: Path) -> None:
    """Gunicorn replaces the socket of a server that was killed."""
    path = tmp_path / "old.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))

    check_listeners([Listener("--bind", f"unix:{path}")])

    assert path.is_socket()
