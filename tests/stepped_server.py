"""Runs a worker's loop and HTTP protocol step by step in the thread of a test."""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from servers import DEADLINE_S, wait_until
from tenantry.http.request_head import HeadReader
from tenantry.observability.scoreboard import Row
from tenantry.server.admission import Admission, OpenAdmission
from tenantry.server.connection import Connection
from tenantry.server.environ import EnvironTemplate
from tenantry.server.loop import _LEAD
from tenantry.server.protocol import HttpProtocol
from tenantry.server.serving import Serving
from tenantry.server.spool import SpoolBudget


class FakeWorker:
    """A replacement for gunicorn's worker, with the settings that the protocol reads."""

    def __init__(self, **settings: Any) -> None:
        self.cfg = SimpleNamespace(**{"keepalive": 65, "worker_connections": 1000} | settings)
        self.log = logging.getLogger("gunicorn.error")
        self.max_requests = settings.get("max_requests", 1_000_000)
        self.row: Row | None = settings.get("row")
        self.hooks: tuple[Any, Any, bool] | None = settings.get("hooks")
        self.checks = 0
        self.has_ended = False

    def request_hooks(self) -> tuple[Any, Any, bool] | None:
        """Return the request hooks that the test has set."""
        return self.hooks

    def end_soon(self) -> None:
        """Record that the worker has reached `max_requests`."""
        self.has_ended = True

    def on_check(self) -> None:
        """Count the checks of time limits."""
        self.checks += 1


class SteppedServer:
    """A server on a free port that the test's thread runs. `close` releases all resources.

    Args:
        app: the WSGI app.
        admission: decides about requests; by default, four requests run at once.
        budget: the memory and disk space for request and response bodies.
        proxy_mode: the mode of gunicorn's setting `proxy_protocol`.
        trusted: the address that may send a PROXY line.
        settings: settings of the worker.
    """

    def __init__(
        self,
        app: Any,
        admission: Admission | None = None,
        *,
        budget: SpoolBudget | None = None,
        proxy_mode: str = "off",
        trusted: str = "127.0.0.1",
        **settings: Any,
    ) -> None:
        self.worker = FakeWorker(**settings)
        self.admission = admission or OpenAdmission(4)
        keeps_alive = self.worker.cfg.keepalive > 0
        self.serving = Serving(budget or SpoolBudget(), keeps_alive=keeps_alive)
        self.protocol = HttpProtocol(
            app, self.admission, self.serving, HeadReader(), self.worker, max_threads=8
        )
        self.loop = self.protocol.loop
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self._template = EnvironTemplate(
            self._listener.getsockname(),
            is_multiprocess=False,
            proxy_mode=proxy_mode,
            is_proxy_trusted=lambda peer: peer[0] == trusted,
        )
        self._cleanup = contextlib.ExitStack()
        self._lead()

    def _lead(self) -> None:
        """Let the thread of the test run the server's loop."""
        self.loop._acceptor.start([(self._listener, self._template)])
        self.loop._leader = threading.get_ident()

    @property
    def address(self) -> Any:
        """The address of the server."""
        return self._listener.getsockname()

    @property
    def connections(self) -> list[Connection]:
        """The open connections, oldest first."""
        return list(self.loop.connections.values())

    def connect(self, data: bytes = b"", *, receive_buffer_bytes: int = 0) -> socket.socket:
        """Return a client that has sent `data`, and whose connection the server has accepted."""
        client = socket.socket()
        self._cleanup.enter_context(client)
        if receive_buffer_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        client.settimeout(DEADLINE_S)
        count = len(self.loop.connections)
        client.connect(self.address)
        if data:
            client.sendall(data)
        self.step_until(lambda: len(self.loop.connections) != count or self._has_answered(client))
        return client

    @staticmethod
    def _has_answered(client: socket.socket) -> bool:
        client.setblocking(False)
        try:
            client.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        finally:
            client.settimeout(DEADLINE_S)
        return True

    def step(self) -> None:
        """Handle the events of one poll, without waiting for an event."""
        self.loop.check_at = min(self.loop.check_at, time.monotonic() + 0.05)
        self.loop._poll_once(threading.get_ident())
        self.loop._leader = threading.get_ident()

    def step_until(self, condition: Callable[[], bool]) -> None:
        """Take steps until the condition is true, or fail the test after `DEADLINE_S`."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, "timed out"
            self.step()

    def check_in(self, seconds: float) -> None:
        """Let the protocol check its time limits as if `seconds` had passed."""
        now = self.loop.now = time.monotonic() + seconds
        self.protocol._check_connections_at = 0.0
        self.protocol.on_check(now)

    def exchange(self, client: socket.socket, data: bytes) -> "Response":
        """Send a request, let the server answer, and return the response."""
        client.sendall(data)
        return self.response(client, is_to_head=data.startswith(b"HEAD "))

    def response(self, client: socket.socket, *, is_to_head: bool = False) -> "Response":
        """Let the server answer, and return the next response of a connection."""
        self.step_until(lambda: self._has_answered(client))
        return Response(client, self.step, is_to_head=is_to_head)

    def close(self) -> None:
        """Close the server and all clients, and end the threads of the server."""
        self._cleanup.close()
        for connection in self.connections:
            self.loop.forget(connection)
        threads = [one for one in threading.enumerate() if one.name.startswith("request-")]
        self.loop._pool.close()
        for thread in threads:
            thread.join(DEADLINE_S)
        self.loop._epoll.close()
        for fd in (self.loop._wake_fd, *self.loop._activity):
            os.close(fd)
        self._listener.close()


class Response:
    """One response on a connection: its status, its header fields and its decoded body."""

    def __init__(
        self, client: socket.socket, step: Callable[[], None], *, is_to_head: bool = False
    ) -> None:
        self._client, self._step = client, step
        client.setblocking(False)
        head = self._read_until(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        self.fields = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])
        }
        self.body = b"" if is_to_head or self.status in (204, 304) else self._read_body()
        client.settimeout(DEADLINE_S)

    @property
    def closes(self) -> bool:
        """Whether the response announces the end of the connection."""
        return self.fields["connection"] == "close"

    def _read_body(self) -> bytes:
        if "content-length" in self.fields:
            return self._read(int(self.fields["content-length"]))
        if "transfer-encoding" not in self.fields:
            return self._read_to_end()
        body = b""
        while size := int(self._read_until(b"\r\n"), 16):
            body += self._read(size)
            assert b"\r\n" == self._read(2)
        assert b"\r\n" == self._read(2)
        return body

    def _read_until(self, end: bytes) -> bytes:
        data = b""
        while not data.endswith(end):
            data += self._read(1)
        return data.removesuffix(end)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._receive(size - len(data))
            assert part, f"the connection ended after {data!r}"
            data += part
        return data

    def _read_to_end(self) -> bytes:
        data = b""
        while part := self._receive(65536):
            data += part
        return data

    def _receive(self, size: int) -> bytes:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                return self._client.recv(size)
            except BlockingIOError:
                assert time.monotonic() < deadline, "timed out"
                self._step()


def is_closed(server: SteppedServer, client: socket.socket) -> bool:
    """Return whether the server has closed a connection without sending data."""
    server.step_until(lambda: SteppedServer._has_answered(client))
    return client.recv(1) == b""


@contextlib.contextmanager
def stepping(app: Any, *arguments: Any, **options: Any) -> Iterator[SteppedServer]:
    """Return a stepped server that is closed at the end of the block."""
    server = SteppedServer(app, *arguments, **options)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def leading(server: SteppedServer) -> Iterator[None]:
    """Let threads of the server lead and watch until the end of the block, as in a worker."""
    loop, is_over = server.loop, threading.Event()
    loop._leader = 0
    loop._pool.do(_LEAD)
    watcher = threading.Thread(target=loop.watch_leader, args=(lambda: not is_over.is_set(),))
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        os.write(loop._activity[1], b"1")
        watcher.join()
        wait_until(lambda: loop._leader != 0 and loop._is_polling)
        loop._leader = 0  # a leader ends when it finds that it is no longer the leader
        loop.wake()
        wait_until(lambda: not loop._is_polling)
