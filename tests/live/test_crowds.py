"""While some clients flood a real server with requests, a quiet tenant is still served."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from hanging import make_hanging_site
from servers import CONFIG_FILE, DEADLINE_S, Server, answers_at, in_threads, running, wait_until

pytestmark = pytest.mark.live

COMMAND = ["gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--workers", "1"]
CLIENTS = 24


@contextlib.contextmanager
def flooding(server: Server, path: str) -> Iterator[None]:
    """Let clients request a path without a pause until the end of the block."""
    all_connected = threading.Barrier(CLIENTS + 1)

    def request(stop: threading.Event) -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as client:
            all_connected.wait(DEADLINE_S)
            while not stop.is_set():
                client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                if not client.recv(65536):
                    return

    with in_threads(*[request] * CLIENTS):
        all_connected.wait(DEADLINE_S)
        yield


@pytest.mark.parametrize("path", ["/nothing", "/%6eoisy/", "/-/livez", "/-/readyz"])
def test_a_flood_for_no_tenant_does_not_starve_tenants(tmp_path: Path, path: str) -> None:
    """A flood of requests that belong to no tenant does not take threads away from tenants."""
    make_hanging_site(tmp_path, quiet={}, noisy={})
    with running(COMMAND, tmp_path, "/quiet/") as server, flooding(server, path):
        answers = [server.get(one)[0].status for _ in range(20) for one in ("/quiet/", "/-/livez")]

    assert [200] * 40 == answers


PATIENCE_OF_A_SECOND = """
from tenantry.server import connection as patience
from tenantry.wsgi import application

patience.PATIENCE_S = 1.0
"""


@contextlib.contextmanager
def trickling(server: Server, paths: list[str]) -> Iterator[Iterator[bytes]]:
    """Send request bodies that never end. Yield the start of each response."""
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", server.port)
        clients = [stack.enter_context(socket.create_connection(address)) for _ in paths]
        for client, path in zip(clients, paths, strict=True):
            head = f"GET {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            client.sendall(head.encode() + b"fffff\r\nx")
            client.settimeout(0.01)
        yield (_trickle_until_answered(client, clients) for client in clients)


def _trickle_until_answered(client: socket.socket, clients: list[socket.socket]) -> bytes:
    answer = b""

    def is_answered() -> bool:
        nonlocal answer
        for one in clients:
            with contextlib.suppress(OSError):
                one.sendall(b"x")
        with contextlib.suppress(TimeoutError):
            answer = client.recv(12)
        return answer != b""

    wait_until(is_answered)
    return answer


def test_slow_bodies_hold_no_thread(tmp_path: Path) -> None:
    """Slow request bodies of all tenants hold no thread, and end with 408 after a while."""
    names = [*"abcdefg", "quiet"]
    make_hanging_site(tmp_path, **{name: {} for name in names})
    (tmp_path / "app.py").write_text(PATIENCE_OF_A_SECOND)
    paths = [f"/{name}/" for name in names]
    with running([*COMMAND, "app:application"], tmp_path, "/quiet/") as server:
        for path in paths:
            server.get(path)
        with trickling(server, paths * 4) as answers:
            during = [server.get(path)[0].status for path in (*paths, "/-/livez")]

            assert [b"HTTP/1.1 408"] * 32 == list(answers)

    assert [200] * 9 == during


@pytest.mark.parametrize("tenants", [4, 7])
def test_slow_requests_of_other_tenants_leave_room(tmp_path: Path, tenants: int) -> None:
    """While up to seven tenants hold all threads that they get, a quiet tenant is served."""
    noisy = [f"noisy{number}" for number in range(tenants)]
    make_hanging_site(tmp_path, quiet={}, **{name: {} for name in noisy})
    with running(COMMAND, tmp_path, "/quiet/") as server:
        for name in noisy:
            server.get(f"/{name}/")

        def request_slowly(stop: threading.Event, name: str) -> None:
            while not stop.is_set():
                server.get(f"/{name}/sleep/1.0")

        with in_threads(*[partial(request_slowly, name=name) for name in noisy * 4]):
            answers = [server.get("/quiet/")[0].status for _ in range(40)]

    assert [200] * 40 == answers


def test_a_worker_with_all_threads_in_hanging_streams_is_replaced(tmp_path: Path) -> None:
    """If streams that never end occupy all threads of a worker, a new worker replaces it."""
    make_hanging_site(tmp_path, **{name: {"DEADLINE_S": 0.3} for name in ("a", "b", "quiet")})
    with running([*COMMAND, "--threads", "2"], tmp_path, "/quiet/") as server:
        before = server.get("/quiet/")[1]
        for name in ("a", "b"):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(f"GET /{name}/stream/3600.0 HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                received = b""
                # the client leaves the stream while the stream runs
                while not received.endswith(b"x\r\n"):
                    received += client.recv(4096)
        wait_until(lambda: "worker.given_up" in server.log.read_text())
        wait_until(lambda: answers_at(server, "/quiet/"))

        assert before != server.get("/quiet/")[1]


def test_a_long_computation_counts_while_it_runs(tmp_path: Path) -> None:
    """While other tenants have traffic, a tenant that computes for long gets no second thread."""
    make_hanging_site(tmp_path, acme={}, quiet={})
    with running(COMMAND, tmp_path, "/quiet/") as server:

        def request_quiet(is_over: threading.Event) -> None:
            while not is_over.is_set():
                assert server.get("/quiet/")[0].status == 200

        server.get("/acme/")
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as client:
            client.sendall(f"GET /acme/compute/{DEADLINE_S} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            with in_threads(request_quiet):
                wait_until(lambda: server.get("/acme/")[0].status == 503)
            os.killpg(server.process.pid, signal.SIGKILL)  # do not wait for the computation
