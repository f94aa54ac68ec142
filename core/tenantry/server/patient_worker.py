"""gunicorn's gthread worker, made safe against slow clients.

With plain gthread (gunicorn 26 and 27), sixteen half-sent request heads hold every thread for as
long as the clients like, twenty clients that keep their socket open after `Connection: close` stop
the accept loop for 40 s, and an exception that is not an `Exception` ends the worker.

Here, a connection uses a thread only once its request head is complete. The main loop collects
heads and drains closed connections without waiting. This overrides private methods of
`ThreadWorker`. `tests/server/test_worker.py` runs each attack on a real server.
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
"""From the start of a connection, or of its next request, to the end of the head."""

HEAD_LIMIT_BYTES = 65536
"""Maximum size of a head. gunicorn's own limits allow 820 kB, and do not count the headers that
`header_map = "drop"` removes: 60,000 of them held the interpreter lock for 1.0 s."""

LINGER_S = 2.0
"""How long a closed connection is drained, so that the client gets the end of its response and not
a reset (RFC 9112 §9.6). gunicorn waits as long, but blocks its accept loop."""

LINGER_LIMIT_BYTES = 1 << 20
"""Maximum bytes that a client may still send after its response: what a loopback buffer holds."""

DRAIN_S = 0.05
"""How long a thread waits for the rest of a body that the app did not read. After that, the
connection is closed. gunicorn waits 5 s, in the thread."""

CLOSE_IDLE_AFTER_S = 1.0
"""When there is no room for another connection, one that was idle for this long is closed."""

CLOSE_AT_ONCE = 8
"""How many connections of each kind are closed at once, the oldest first."""

HEAD_END = b"\r\n\r\n"
"""The end of a head (RFC 9112 §2.1)."""

TOO_LARGE = ProblemResponse(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request head is too large."
)
TOO_SLOW = ProblemResponse(HTTPStatus.REQUEST_TIMEOUT, "The request arrived too slowly.")

_RECEIVE_BYTES = 65536
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_BARE_LF = re.compile(rb"(?<!\r)\n")


class Connection(TConn):  # type: ignore[misc]
    """A client's connection, owned by the main loop and lent to a thread for each request.

    The thread uses `sock`, which waits for the client; the main loop uses `raw`, which never does.
    """

    head = b""
    """The part of the next request that has arrived while no thread has the connection."""
    searched_bytes = 0
    """Number of bytes of `head` that have been searched for its end."""
    drained_bytes = 0
    tenant: str | None = None
    """The tenant of the request that runs or waits, if known. `TenantWorker` sets it."""

    def __init__(self, cfg: Any, raw: socket.socket, client: Any, server: Any) -> None:
        super().__init__(cfg, PatientSocket(raw), client, server)
        self.raw = raw


class PatientWorker(ThreadWorker):  # type: ignore[misc]
    """Waits for slow clients without a thread. Lives as long as its process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lingering_conns: deque[Connection] = deque()  # oldest first; main loop only
        self._accepts_from = 0.0  # on the monotonic clock; in the future while out of descriptors

    def get_thread_pool(self) -> ThreadPool[TConn]:
        """Return the threads that serve requests, which gunicorn keeps as `tpool`."""
        return ThreadPool(self.cfg.threads, self._serve)

    # -- what `TenantWorker` overrides --------------------------------------------------------

    def take_turn(self, conn: Connection) -> None:
        """Continue with a connection whose request head is complete."""
        self.hand_over(conn)

    def end_turn(self, conn: TConn) -> None:
        """Called when a request has ended, in the thread that ran it."""

    def is_answered(self, _conn: Connection, _head: bytes) -> bool:
        """Answer the next request of a kept-alive connection if it needs no thread."""
        return False

    # -- a request's head, in the main loop ---------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection and wait for its head without a thread."""
        if self.cfg.is_ssl:  # the TLS handshake blocks, so it needs a thread
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
                self.set_accept_enabled(False)  # or the readable listener wakes us at once
                return
            raise
        self.nr_conns += 1
        self.await_head(Connection(self.cfg, sock, address, listener.getsockname()), b"")

    def set_accept_enabled(self, enabled: bool) -> None:
        """Enable accepting, unless there are no file descriptors for new connections."""
        super().set_accept_enabled(enabled and time.monotonic() >= self._accepts_from)

    def on_client_socket_readable(self, conn: TConn, client: socket.socket) -> None:
        """Begin the next request of a kept-alive connection. Usually, its head has arrived."""
        if not isinstance(conn, Connection):  # under TLS: a thread reads it
            super().on_client_socket_readable(conn, client)
            return
        try:
            head = client.recv(_RECEIVE_BYTES)
        except OSError:
            head = b""  # the next read finds the error again
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
        """Wait for the rest of a request head of which `head` has arrived."""
        conn.head, conn.searched_bytes = head, 0
        conn.timeout = time.monotonic() + HEAD_TIMEOUT_S
        self.pending_conns.append(conn)
        self.poller.register(conn.raw, selectors.EVENT_READ, partial(self._on_head_bytes, conn))
        self._on_head_bytes(conn, conn.raw)  # usually, it has already arrived

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
        elif end >= 0 or _BARE_LF.search(conn.head, seen):  # gunicorn refuses this at once
            self._leave_poller(conn, self.pending_conns)
            self.take_turn(conn)
        elif is_at_end:
            self.end_waiting(conn, self.pending_conns)

    def hand_over(self, conn: Connection) -> None:
        """Give the connection, with its complete head, to a thread, which parses it."""
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
        """Answer 408 to heads that are too slow, and close what has lingered long enough."""
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
        """Close idle connections, so that slow clients do not keep the others out.

        Not in `accept`, where events of these connections may be pending. On copies, because
        threads add to one of the queues.
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
        """Close idle connections of a stopping worker by `deadline`, even without a request."""
        idle = self.keepalived_conns.copy()  # a copy, because threads add connections meanwhile
        for conn in (*idle, *self.pending_conns):
            conn.timeout = min(conn.timeout, deadline)

    # -- the request, in a thread ---------------------------------------------------------------

    def enqueue_req(self, conn: TConn) -> None:
        """Give a request to a thread. Thread-safe, like `hand_over`."""
        if not self.tpool.do(conn):
            self.method_queue.defer(self.drop, conn)  # the worker has ended

    def _serve(self, conn: TConn) -> None:
        """Serve one request. Involve the main loop only if the connection does not just stay open.

        Waking it for each request took a tenth of a small request's CPU time.
        """
        is_kept = self.handle(conn)
        self.end_turn(conn)
        if is_kept and isinstance(conn, Connection) and self.alive and not _has_sent_more(conn):
            self.keep(conn)
            return
        served: Future[Any] = Future()  # gunicorn's `finish_request` expects it
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
        """Run the app. If the client reads or sends too slowly, the thread is freed."""
        if not isinstance(conn.sock, PatientSocket):  # under TLS, the first time
            conn.sock = conn.parser.unreader.sock = PatientSocket(conn.sock)
        conn.sock.begin(holds_head=req.method != "HEAD")
        is_kept = super().handle_request(req, conn)
        conn.sock.flush()
        return is_kept

    def _keepalive_after(self, conn: TConn, keepalive: Any) -> bool:
        if not keepalive:
            return False
        if _is_read(conn.parser.mesg.body):
            return True  # however late: the thread may not have run for longer than `DRAIN_S`
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
        # From here on, the main loop owns the connection.
        self.poller.register(conn.raw, selectors.EVENT_READ, wanted)
        if not self.alive:
            # The worker is stopping, and may already have limited its idle connections. A request
            # that is on its way gets the same time for its head.
            conn.timeout = min(conn.timeout, time.monotonic() + STOP_KEEPALIVE_LINGER)

    # -- after the request, in the main loop ----------------------------------------------------

    def finish_request(self, conn: TConn, fs: Future[Any]) -> None:
        """Let a connection end without waiting, or continue with what it has already sent."""
        if not isinstance(conn, Connection):
            super().finish_request(conn, fs)
        elif not fs.result():
            self.linger(conn)
        elif buffered := conn.parser.unreader.take_buffered():
            self.await_head(conn, buffered)
        else:
            super().finish_request(conn, fs)

    def linger(self, conn: Connection) -> None:
        """Close a connection once the client closes it, or after `LINGER_S`."""
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
    """Whether a part of the next request arrived with this one; the poller does not see it."""
    return bool(conn.parser.unreader.buf.getvalue())


def _is_read(body: Any) -> bool:
    """Whether the app has read the request body to its end, or there was none.

    gunicorn's `finish_body` checks the time first. On a busy machine, it closed connections after
    the response had promised to keep them, and the client's next request was lost.
    """
    reader = body.reader  # for a body with a length or a chunked body
    is_at_end = getattr(reader, "length", None) == 0 or getattr(reader, "parser", body) is None
    return is_at_end and not body.failed and not body.buf.tell()


class _Recorder:
    """Replaces the socket while gunicorn writes its HTML error page."""

    def __init__(self) -> None:
        self.sent = b""

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def gettimeout(self) -> float:
        return 0.0


def send_problem(client: socket.socket, problem: ProblemResponse) -> None:
    """Send a problem document without waiting. The connection closes afterwards."""
    try:
        client.setblocking(False)
        client.sendall(render_response(problem, b"", keep_alive=False))
    except OSError:
        pass  # the client has left or does not read
