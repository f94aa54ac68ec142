"""gunicorn's gthread worker with protection against slow clients.

With plain gthread (gunicorn 26 and 27), sixteen half-sent request heads hold every thread without a
time limit, twenty clients that keep their socket open after `Connection: close` stop the accept
loop for 40 s, and an exception that is not an `Exception` ends the worker.

With `PatientWorker`, a connection uses a thread only after its request head is complete. The main
loop of `PatientWorker` collects request heads and drains closed connections without waiting.
`PatientWorker` overrides private methods of `ThreadWorker`. `tests/server/test_worker.py` runs each
attack on a real server.
"""

import errno
import re
import selectors
import socket
import time
from collections import deque
from concurrent.futures import Future
from functools import partial
from http import HTTPStatus
from itertools import islice
from typing import Any

from gunicorn import http
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn, ThreadWorker

from tenantry.http.problem import ProblemResponse
from tenantry.http.raw_head import render_response
from tenantry.server.client_socket import PatientSocket
from tenantry.server.thread_pool import ThreadPool

HEAD_TIMEOUT_S = 10.0
"""Seconds that a client has from the start of a connection, or of the next request, to the end of
the request head."""

HEAD_LIMIT_BYTES = 65536
"""Maximum size of a request head. gunicorn's own limits allow 820 kB, and do not count the headers
that `header_map = "drop"` removes: 60,000 removed headers held the interpreter lock for 1.0 s."""

LINGER_S = 2.0
"""Seconds for which a closed connection is drained, so that the client gets the end of its response
and not a reset (RFC 9112 §9.6). gunicorn's own worker waits equally long, but blocks its accept
loop."""

LINGER_LIMIT_BYTES = 1 << 20
"""Maximum bytes that a client may send after its response, enough for a full loopback buffer."""

DRAIN_S = 0.05
"""Seconds that a thread waits for the rest of a request body that the app did not read, before the
worker closes the connection. gunicorn's own worker waits 5 s in the thread."""

CLOSE_IDLE_AFTER_S = 1.0
"""Seconds of idleness after which a worker without room for a new connection may close a
connection."""

CLOSE_AT_ONCE = 8
"""Maximum number of idle connections of each kind that `_make_room` closes at once, oldest
first."""

HEAD_END = b"\r\n\r\n"
"""The end of a request head (RFC 9112 §2.1)."""

TOO_LARGE = ProblemResponse(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request head is too large."
)
TOO_SLOW = ProblemResponse(HTTPStatus.REQUEST_TIMEOUT, "The request arrived too slowly.")

_RECEIVE_BYTES = 65536
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_BARE_LF = re.compile(rb"(?<!\r)\n")


class Connection(TConn):  # type: ignore[misc]
    """A client's connection, owned by the main loop and lent to a thread for each request.

    The thread uses the attribute `sock`, which waits for the client; the main loop uses the
    attribute `raw`, which never waits.
    """

    head = b""
    """The part of the next request that has arrived while no thread has the connection."""
    searched_bytes = 0
    """Number of bytes of `head` that have been searched for the end of the request head."""
    drained_bytes = 0
    tenant: str | None = None
    """The tenant of the running or waiting request, if known; set by `TenantWorker`."""

    def __init__(self, cfg: Any, raw: socket.socket, client: Any, server: Any) -> None:
        super().__init__(cfg, PatientSocket(raw), client, server)
        self.raw = raw


class PatientWorker(ThreadWorker):  # type: ignore[misc]
    """A gunicorn worker that waits for slow clients without a thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Oldest connection first; used only by the main loop.
        self.lingering_conns: deque[Connection] = deque()
        self._accepts_from = 0.0  # monotonic time; in the future while out of descriptors

    def get_thread_pool(self) -> ThreadPool[TConn]:
        """Return the pool of request threads, which gunicorn keeps as `tpool`."""
        return ThreadPool(self.cfg.threads, self._serve)

    # -- what `TenantWorker` overrides --------------------------------------------------------

    def take_turn(self, conn: Connection) -> None:
        """Continue with a connection that has a complete request head."""
        self.hand_over(conn)

    def end_turn(self, conn: TConn) -> None:
        """Handle the end of a request, in the thread that ran the request."""

    def is_answered(self, _conn: Connection, _head: bytes) -> bool:
        """Answer the next request of a kept-alive connection if the answer needs no thread."""
        return False

    # -- a request's head, in the main loop ---------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection and wait for the request head without a thread."""
        if self.cfg.is_ssl:  # the TLS handshake blocks, so the handshake needs a thread
            super().accept(listener)
            return
        try:
            sock, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ECONNABORTED):
                return
            if error.errno in _OUT_OF_RESOURCES:
                self.log.warning("%s; raise `ulimit -n` or lower worker_connections.", error)
                self._accepts_from = time.monotonic() + CLOSE_IDLE_AFTER_S
                # A readable listener would wake the main loop at once.
                self.set_accept_enabled(False)
                return
            raise
        self.nr_conns += 1
        self.await_head(Connection(self.cfg, sock, address, listener.getsockname()), b"")

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept connections again, unless the process has run out of file descriptors."""
        super().set_accept_enabled(enabled and time.monotonic() >= self._accepts_from)

    def on_client_socket_readable(self, conn: TConn, client: socket.socket) -> None:
        """Begin the next request of a kept-alive connection with the bytes that have arrived."""
        if not isinstance(conn, Connection):  # under TLS, a thread reads the request
            super().on_client_socket_readable(conn, client)
            return
        try:
            head = client.recv(_RECEIVE_BYTES)
        except OSError:
            head = b""  # the next read raises the error again
        is_whole = head.endswith(HEAD_END) and head.count(HEAD_END) == 1
        if is_whole and self.is_answered(conn, head):
            return
        self._leave_poller(conn, self.keepalived_conns)
        if is_whole and len(head) <= HEAD_LIMIT_BYTES:
            conn.head = head
            self.take_turn(conn)
        else:
            self.await_head(conn, head)

    def await_head(self, conn: Connection, head: bytes) -> None:
        """Wait for the rest of a request head that starts with `head`."""
        conn.head, conn.searched_bytes = head, 0
        conn.timeout = time.monotonic() + HEAD_TIMEOUT_S
        self.pending_conns.append(conn)
        self.poller.register(conn.raw, selectors.EVENT_READ, partial(self._on_head_bytes, conn))
        self._on_head_bytes(conn, conn.raw)  # usually, the rest of the head has already arrived

    def _on_head_bytes(self, conn: Connection, client: socket.socket) -> None:
        try:
            data = client.recv(_RECEIVE_BYTES)
            is_at_end = not data
        except BlockingIOError:
            data, is_at_end = b"", False
        except OSError:
            data, is_at_end = b"", True
        conn.head += data
        seen, conn.searched_bytes = conn.searched_bytes, len(conn.head)
        end = conn.head.find(HEAD_END, max(0, seen - 3))
        if end > HEAD_LIMIT_BYTES or (end < 0 and len(conn.head) > HEAD_LIMIT_BYTES):
            self._refuse(conn, TOO_LARGE)
        elif end >= 0 or _BARE_LF.search(conn.head, seen):  # gunicorn refuses a bare LF at once
            self._leave_poller(conn, self.pending_conns)
            self.take_turn(conn)
        elif is_at_end:
            self.end_waiting(conn, self.pending_conns)

    def hand_over(self, conn: Connection) -> None:
        """Give a connection with a complete request head to a thread, which parses the head."""
        if conn.parser is None:
            conn.parser = http.get_parser(self.cfg, conn.sock, conn.client)
        conn.parser.unreader.unread(conn.head)
        conn.head, conn.data_ready = b"", True
        self.enqueue_req(conn)

    def _refuse(self, conn: Connection, problem: ProblemResponse) -> None:
        self._leave_poller(conn, self.pending_conns)
        send_problem(conn.raw, problem)
        self.linger(conn)

    def murder_pending(self) -> None:
        """Answer 408 to slow request heads, and close connections after their time limit."""
        now = time.monotonic()
        while self.pending_conns and self.pending_conns[0].timeout <= now:
            self._end_pending(self.pending_conns[0])
        while self.lingering_conns and self.lingering_conns[0].timeout <= now:
            self.end_waiting(self.lingering_conns[0], self.lingering_conns)
        if self.nr_conns >= self.worker_connections or now < self._accepts_from:
            self._make_room(now)

    # -- slow heads -----------------------------------------------------------------------------

    def _end_pending(self, conn: TConn) -> None:
        if isinstance(conn, Connection) and conn.head and self.alive:
            self._refuse(conn, TOO_SLOW)
        else:
            self.end_waiting(conn, self.pending_conns)

    def _make_room(self, now: float) -> None:
        """Close idle connections, so that slow clients do not block new clients.

        `accept` does not call `_make_room`, because events of idle connections may be pending
        during `accept`. `_make_room` iterates over copies, because threads add connections to a
        queue.
        """
        waiting_s = (
            (self.lingering_conns, LINGER_S),
            (self.pending_conns, HEAD_TIMEOUT_S),
            (self.keepalived_conns, self.cfg.keepalive),
        )
        for waiting, limit_s in waiting_s:
            for conn in list(islice(waiting.copy(), CLOSE_AT_ONCE)):
                if conn.timeout - limit_s <= now - CLOSE_IDLE_AFTER_S:
                    self.end_waiting(conn, waiting)
                    self._accepts_from = 0.0

    def _cap_keepalive(self, deadline: float) -> None:
        """Limit the time of idle connections of a stopping worker to `deadline`."""
        idle = self.keepalived_conns.copy()  # a copy, because threads add connections
        for conn in (*idle, *self.pending_conns):
            conn.timeout = min(conn.timeout, deadline)

    # -- the request, in a thread ---------------------------------------------------------------

    def enqueue_req(self, conn: TConn) -> None:
        """Give a request to a thread. Thread-safe, like `hand_over`."""
        if not self.tpool.do(conn):
            self.method_queue.defer(self.drop, conn)  # the worker has ended

    def _serve(self, conn: TConn) -> None:
        """Serve one request, and wake the main loop only if the connection does not stay open.

        Waking the main loop for each request took a tenth of a small request's CPU time.
        """
        is_kept = self.handle(conn)
        self.end_turn(conn)
        if is_kept and isinstance(conn, Connection) and self.alive and not _has_sent_more(conn):
            self.keep(conn)
            return
        served: Future[Any] = Future()  # gunicorn's `finish_request` expects a future
        served.set_result(is_kept)
        self.method_queue.defer(self.finish_request, conn, served)

    def handle(self, conn: TConn) -> Any:
        """Serve one request. No exception leaves this method."""
        try:
            return super().handle(conn)
        except BaseException:
            self.log.exception("Error handling request")
            return False

    def handle_request(self, req: Any, conn: TConn) -> Any:
        """Run the app for one request, and give up if the client reads or sends too slowly."""
        if not isinstance(conn.sock, PatientSocket):  # the first request of a TLS connection
            conn.sock = conn.parser.unreader.sock = PatientSocket(conn.sock)
        conn.sock.begin(holds_head=req.method != "HEAD")
        is_kept = super().handle_request(req, conn)
        conn.sock.flush()
        return is_kept

    def _keepalive_after(self, conn: TConn, keepalive: Any) -> bool:
        if not keepalive:
            return False
        if _is_read(conn.parser.mesg.body):
            # Even after `DRAIN_S`, because the thread may have waited for the processor.
            return True
        return bool(conn.parser.finish_body(deadline=time.monotonic() + DRAIN_S))

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Answer a malformed request with a problem document and a request ID."""
        recorded = _Recorder()
        super().handle_error(req, recorded, addr, exc)
        parts = recorded.sent.split(b" ", 2)
        status = HTTPStatus(int(parts[1])) if len(parts) > 1 else HTTPStatus.INTERNAL_SERVER_ERROR
        what = (
            "could not be answered"
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR
            else "is malformed"
        )
        raw = client.raw if isinstance(client, PatientSocket) else client
        send_problem(raw, ProblemResponse(status, f"The request {what}."))

    def keep(self, conn: Connection) -> None:
        """Let the main loop wait for the connection's next request. Thread-safe."""
        conn.set_timeout()
        self.keepalived_conns.append(conn)
        wanted = partial(self.on_client_socket_readable, conn)
        # After `register`, the main loop owns the connection.
        self.poller.register(conn.raw, selectors.EVENT_READ, wanted)
        if not self.alive:
            # A stopping worker may already have limited the time of its idle connections, so the
            # connection gets the same limit for the head of its next request.
            conn.timeout = min(conn.timeout, time.monotonic() + STOP_KEEPALIVE_LINGER)

    # -- after the request, in the main loop ----------------------------------------------------

    def finish_request(self, conn: TConn, fs: Future[Any]) -> None:
        """Close a connection without waiting, or continue with the bytes that have arrived."""
        if not isinstance(conn, Connection):
            super().finish_request(conn, fs)
        elif not fs.result():
            self.linger(conn)
        elif buffered := conn.parser.unreader.take_buffered():
            self.await_head(conn, buffered)
        else:
            super().finish_request(conn, fs)

    def linger(self, conn: Connection) -> None:
        """Close a connection after the client closes the connection, or after `LINGER_S`."""
        try:
            conn.raw.shutdown(socket.SHUT_WR)
        except OSError:
            self.drop(conn)  # the client has left
            return
        conn.timeout = time.monotonic() + LINGER_S
        self.lingering_conns.append(conn)
        self.poller.register(conn.raw, selectors.EVENT_READ, partial(self._on_last_bytes, conn))

    def _on_last_bytes(self, conn: Connection, client: socket.socket) -> None:
        try:
            size = len(client.recv(_RECEIVE_BYTES))
        except OSError:
            size = 0
        conn.drained_bytes += size
        if not size or conn.drained_bytes > LINGER_LIMIT_BYTES:
            self.end_waiting(conn, self.lingering_conns)

    def end_waiting(self, conn: TConn, waiting: deque[Any]) -> None:
        """Close a connection that waits in the poller and in `waiting`."""
        self._leave_poller(conn, waiting)
        self.drop(conn)

    def _leave_poller(self, conn: TConn, waiting: deque[Any]) -> None:
        waiting.remove(conn)
        self.poller.unregister(conn.sock)

    def drop(self, conn: TConn) -> None:
        """Close a connection that is in no queue."""
        self.nr_conns -= 1
        conn.close()


def _has_sent_more(conn: Connection) -> bool:
    """Whether the parser's buffer has bytes of the next request, which the poller does not see."""
    return bool(conn.parser.unreader.buf.getvalue())


def _is_read(body: Any) -> bool:
    """Whether the app has read the whole request body, or the request has no body.

    gunicorn's `finish_body` checks the time first. On a busy machine, `finish_body` closed a
    connection after the response had promised to keep the connection, so the client's next request
    was lost.
    """
    reader = body.reader  # for a body with a length or a chunked body
    is_at_end = getattr(reader, "length", None) == 0 or getattr(reader, "parser", body) is None
    return is_at_end and not body.failed and not body.buf.tell()


class _Recorder:
    """A replacement for the socket that records gunicorn's HTML error page."""

    def __init__(self) -> None:
        self.sent = b""

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def gettimeout(self) -> float:
        return 0.0


def send_problem(client: socket.socket, problem: ProblemResponse) -> None:
    """Send a problem document without waiting, as the last response of a connection."""
    try:
        client.setblocking(False)
        client.sendall(render_response(problem, b"", keep_alive=False))
    except OSError:
        pass  # the client has left or does not read
