"""Crowds on a real server with tenants: whatever they do, a quiet tenant is answered."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hanging import make_hanging_site
from servers import CONFIG_FILE, DEADLINE_S, Server, running

pytestmark = pytest.mark.live

COMMAND = ["gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--workers", "1"]
CLIENTS = 24


@contextlib.contextmanager
def asking(server: Server, path: str) -> Iterator[None]:
    """Let clients ask for a path without a pause until the end of the block."""
    is_over = threading.Event()
    have_begun = threading.Barrier(CLIENTS + 1)

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as client:
            have_begun.wait(DEADLINE_S)
            while not is_over.is_set():
                client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                if not client.recv(65536):
                    return

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    have_begun.wait(DEADLINE_S)
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("path", ["/nothing", "/%71uiet/", "/-/livez", "/-/readyz"])
def test_requests_of_nobody_starve_nobody(tmp_path: Path, path: str) -> None:
    """A flood of them takes no more threads than one tenant gets."""
    make_hanging_site(tmp_path, quiet={})
    with running(COMMAND, tmp_path, "/quiet/") as server, asking(server, path):
        answers = [server.get(one)[0].status for _ in range(20) for one in ("/quiet/", "/-/livez")]

    assert [200] * 40 == answers
