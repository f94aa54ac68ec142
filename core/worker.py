"""The gunicorn worker: gthread, made safe against slow clients. Knows gunicorn only.

Seen with plain gthread (gunicorn 26 and 27): sixteen half-sent request heads hold every thread for
as long as the clients like; twenty clients that keep their socket open after `Connection: close`
stop the accept loop for 40 s; an exception that is no `Exception` ends the worker.

Here a connection costs a thread only from its whole request head on: heads are collected, and
closed connections are drained, in the main loop and without waiting. An app that has a `door` (our
host) says there whose a request is: it gets a thread when it is its tenant's turn.

Private methods of `ThreadWorker` are overridden: `tests/test_worker.py` runs each attack on a real
server, on the oldest and the newest gunicorn that we allow.
"""

import errno
import logging
import os
import re
import secrets
import selectors
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from http import HTTPStatus
from itertools import islice
from typing import Any

from gunicorn import http
from gunicorn.workers.gthread import TConn, ThreadWorker

from config.settings import read_settings
from core.board import Board, Row
from core.heads import answer, is_whole_request
from core.heartbeat import Heartbeat, blame
from core.problem import REQUEST_ID, ProblemAnswer
from core.strikes import Strikes
from core.waiting import WaitingRoom

HEAD_TIMEOUT_S = 10.0
"""From the first moment of a connection, or of its next request, to the end of the head."""

HEAD_LIMIT_BYTES = 65536
"""A whole head. gunicorn's own limits add up to 820 kB, and it does not count the headers that
`header_map = "drop"` drops: 60,000 of them held the interpreter lock for 1.0 s."""

STALL_TIMEOUT_S = 30.0
"""How long one read or write in a thread may wait for the client: then the thread is free again."""

LINGER_S = 2.0
"""How long a closed connection is drained, so that the client gets the end of its answer and no
reset (RFC 9112 §9.6); gunicorn waits as long, but blocks its accept loop."""

LINGER_LIMIT_BYTES = 1 << 20
"""What a client may still send after its answer: no more than a loopback buffer holds."""

DRAIN_S = 0.05
"""How long a thread waits for the rest of a body that the app did not read: it is there, or the
connection is closed. gunicorn waits 5 s, in the thread."""

STUCK_LOOK_S = 1.0
"""Between two looks whether a request could get a thread at all."""

GIVE_UP_S = 2
"""How long a worker whose threads are all stuck still answers 503: as long as gunicorn gives idle
connections to send the request that may be under way."""

ROOM_AFTER_S = 1.0
"""When there is no room for another connection, one that has sent no request for so long goes."""

ROOM_CONNECTIONS = 8
"""How many of each kind go at once, the oldest first."""

SWITCH_INTERVAL_S = 0.0005
"""How long a thread that computes keeps the interpreter lock when others want it. Beside a tenant
that computes 50 ms per request without a rest, 32 clients, another one had 0.71 of its calm
throughput and 1.5 times its p99; with Python's own 5 ms 0.29 and 4.8 times, with 1 ms 0.31 and 2
times."""

_RECEIVE_BYTES = 65536
_HEAD_END = b"\r\n\r\n"
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_BARE_LF = re.compile(rb"(?<!\r)\n")

_logger = logging.getLogger(__name__)


class Connection(TConn):  # type: ignore[misc]
    """A client's connection; owned by the main loop, lent to a thread for each request."""

    head = b""
    """What has come of the next request's head while no thread has the connection."""
    searched_bytes = 0
    """How much of it is known not to hold its end."""
    drained_bytes = 0
    tenant: str | None = None
    """Whose the request that runs or waits is, where that is known."""


class TenantWorker(ThreadWorker):  # type: ignore[misc]
    """`worker_class` of `config/gunicorn.conf.py`."""

    tmp: Heartbeat

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lingering_conns: deque[Connection] = deque()  # oldest first; main loop only
        self._is_given_up = False
        self._next_stuck_look = 0.0  # on the monotonic clock
        self.door: Any = None
        self.room: WaitingRoom[Connection] | None = None
        self._accepts_from = 0.0  # on the monotonic clock; in the future while out of descriptors
        # In the master, before the fork; one board for all workers, those after a HUP too.
        self.app.board = getattr(self.app, "board", None) or Board()
        self.row: Row | None = self.app.board.claim()
        self.tmp.close()
        self.tmp = Heartbeat(self.cfg, self, self.row, self._has_struck)

    def _has_struck(self, tenant: str) -> bool:
        strikes: Strikes | None = getattr(self.app, "strikes", None)
        return strikes is not None and strikes.has_struck(tenant)

    def init_process(self) -> None:
        """Begin, in the new process."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        super().init_process()

    def load_wsgi(self) -> None:
        """Load the host, and let the heart beat meanwhile.

        Each tenant file that hangs costs 5 s, and a worker whose heart stands still for `timeout`
        is killed: seven such files would stop the host for ever.
        """
        is_loaded = threading.Event()
        heart = threading.Thread(target=self._beat_until, args=(is_loaded,), name="heart")
        heart.start()
        try:
            super().load_wsgi()
            start = getattr(self.wsgi, "start", None)
            if start is not None:
                # An app that wants to know that its process serves now: our host.
                start("gunicorn", row=self.row, threads=self.cfg.threads)
        finally:
            is_loaded.set()
            heart.join()
        self.door = getattr(self.wsgi, "door", None)
        if self.door is not None:
            self.room = WaitingRoom(self.door.share)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to stop; the app learns it before its last requests have finished."""
        stop = getattr(getattr(self, "wsgi", None), "stop", None)
        if stop is not None:
            stop()
        self._note_stopping()
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """End now."""
        self._note_stopping()
        super().handle_quit(sig, frame)

    def note_exit(self) -> None:
        """Note who may have ended this worker, and let another have its place on the board.

        In the master, when it is gone. Raises nothing: the master would end with all its workers.
        """
        if self.row is None:
            return
        try:
            suspects, reason = blame(self.row, self.tmp)
            if suspects:
                app = self.app  # one for all workers, those after a HUP too
                app.strikes = getattr(app, "strikes", None) or Strikes(read_settings().data_dir)
                app.strikes.note(suspects, reason)
        except Exception:
            _logger.exception("worker.exit_not_judged")
        finally:
            self.row.free()

    def _note_stopping(self) -> None:
        if self.row is not None:
            self.row.stop()

    def _beat_until(self, is_loaded: threading.Event) -> None:
        while not is_loaded.wait(1.0):
            self.notify()

    # -- a request's head, in the main loop ---------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection and wait for its head without a thread."""
        if self.cfg.is_ssl:  # the handshake blocks: it needs a thread
            super().accept(listener)
            return
        try:
            sock, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ECONNABORTED):
                return
            if error.errno in _OUT_OF_RESOURCES:
                self.log.warning("%s; raise `ulimit -n` or lower worker_connections.", error)
                self._accepts_from = time.monotonic() + ROOM_AFTER_S
                self.set_accept_enabled(False)  # or the listener, readable still, wakes us at once
                return
            raise
        self.nr_conns += 1
        self._await_head(Connection(self.cfg, sock, address, listener.getsockname()), b"")

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept connections or not; not while there are no file descriptors for them."""
        super().set_accept_enabled(enabled and time.monotonic() >= self._accepts_from)

    def on_client_socket_readable(self, conn: Connection, client: socket.socket) -> None:
        """Begin the next request of a kept-alive connection: mostly its head is there."""
        try:
            head = client.recv(_RECEIVE_BYTES)
        except OSError:
            head = b""  # whatever it is, the next look finds it again
        is_whole = head.endswith(_HEAD_END) and head.count(_HEAD_END) == 1
        if is_whole and self._is_turned_away_again(conn, head):
            return
        self._leave_poller(conn, self.keepalived_conns)
        if is_whole and len(head) <= HEAD_LIMIT_BYTES:
            conn.head = head
            self._take_turn(conn)
        else:
            self._await_head(conn, head)

    def _is_turned_away_again(self, conn: Connection, head: bytes) -> bool:
        """Refuse a kept-alive connection's next request; it stays in the poller meanwhile."""
        tenant = None if self.door is None else conn.tenant
        if tenant is None or not is_whole_request(head) or self.door.whose(head) != tenant:
            return False
        refusal = self.door.refusal(tenant)
        data = b"" if refusal is None else answer(refusal[0], head, refusal[1], is_kept=True)
        if not data or not self.alive:
            return False
        self.door.note_turned_away(tenant)
        conn.set_timeout()
        self.keepalived_conns.remove(conn)
        self.keepalived_conns.append(conn)  # they are in the order of their time
        try:
            is_sent = conn.sock.send(data) == len(data)
        except OSError:
            is_sent = False
        if not is_sent:
            self._end_waiting(conn, self.keepalived_conns)
        return True

    def _await_head(self, conn: Connection, head: bytes) -> None:
        conn.head, conn.searched_bytes = head, 0
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + HEAD_TIMEOUT_S
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_head_bytes, conn))
        self._on_head_bytes(conn, conn.sock)  # it is there already, most of the time

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
        end = conn.head.find(_HEAD_END, max(0, seen - 3))
        if end > HEAD_LIMIT_BYTES or (end < 0 and len(conn.head) > HEAD_LIMIT_BYTES):
            self._refuse(conn, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The head is too large.")
        elif end >= 0 or _BARE_LF.search(conn.head, seen):  # which gunicorn refuses at once
            self._leave_poller(conn, self.pending_conns)
            self._take_turn(conn)
        elif is_at_end:
            self._end_waiting(conn, self.pending_conns)

    def _take_turn(self, conn: Connection) -> None:
        """Give the connection to a thread when it is its tenant's turn."""
        conn.tenant = None
        if self.room is not None and isinstance(conn, Connection):  # not under TLS, uncounted there
            if not self.door.is_operators(conn.server):
                conn.tenant = self.door.whose(conn.head)
            if conn.tenant is not None:
                if (refusal := self.door.refusal(conn.tenant)) is not None:
                    self._turn_away(conn, *refusal)
                    return
                if self.room.is_full(conn.tenant):
                    self._turn_away(conn, self.door.busy)
                    return
            if not self.room.arrive(conn.tenant, conn):
                return
        self._hand_over(conn)

    def _hand_over(self, conn: Connection) -> None:
        """Give the connection to a thread, which parses the head: it has not to wait for it."""
        if conn.parser is None:
            conn.parser = http.get_parser(self.cfg, conn.sock, conn.client)
        conn.parser.unreader.unread(conn.head)
        conn.head, conn.data_ready = b"", True
        self.enqueue_req(conn)

    def _turn_away(
        self, conn: Connection, problem: ProblemAnswer, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Answer without a thread; the connection stays open where it is sure what follows."""
        end = conn.head.find(_HEAD_END) + len(_HEAD_END)
        head, rest = conn.head[:end], conn.head[end:]
        has_room = len(self.keepalived_conns) < self.max_keepalived
        is_kept = self.alive and has_room and is_whole_request(head)
        data = answer(problem, head, headers, is_kept=is_kept)
        self.door.note_turned_away(conn.tenant)
        try:
            is_sent = conn.sock.send(data) == len(data)
        except OSError:
            is_sent = False
        if not is_sent:  # the client has gone, or does not read
            self._drop(conn)
        elif not is_kept:
            self._linger(conn)
        elif rest:
            self.method_queue.defer(self._await_head, conn, rest)  # after who is waiting now
        else:
            self._keep(conn)

    def _keep(self, conn: Connection) -> None:
        conn.head = b""
        conn.set_timeout()
        self.keepalived_conns.append(conn)
        wanted = partial(self.on_client_socket_readable, conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, wanted)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for events, and no longer than the next request may wait for its turn."""
        left_s = None if self.room is None else self.room.left_s()
        super().wait_for_and_dispatch_events(timeout if left_s is None else min(timeout, left_s))
        if self.room is not None and left_s is not None:
            for conn in self.room.ready():
                self._hand_over(conn)
            for _, conn in self.room.expired():
                self._turn_away(conn, self.door.busy)

    def _refuse(self, conn: Connection, status: HTTPStatus, detail: str) -> None:
        self._leave_poller(conn, self.pending_conns)
        _send_problem(conn.sock, status, detail)
        self._linger(conn)

    def murder_pending(self) -> None:
        """Answer 408 where a head did not come in time, and end what has lingered long enough."""
        now = time.monotonic()
        while self.pending_conns and self.pending_conns[0].timeout <= now:
            self._end_pending(self.pending_conns[0])
        while self.lingering_conns and self.lingering_conns[0].timeout <= now:
            self._end_waiting(self.lingering_conns[0], self.lingering_conns)
        if self.nr_conns >= self.worker_connections or now < self._accepts_from:
            self._make_room(now)
        if now >= self._next_stuck_look and self.alive:
            self._next_stuck_look = now + STUCK_LOOK_S
            self._look_for_threads()

    # -- when all threads are stuck -------------------------------------------------------------

    def run(self) -> None:
        """Serve until the end; threads that are stuck are not waited for."""
        super().run()
        if self._is_given_up:
            os._exit(1)  # which is no orderly end: who holds the threads gets a strike

    def _look_for_threads(self) -> None:
        """Give up when each thread has a request that hangs in its app, over its deadline.

        What is queued is answered 503, in the main loop, and another worker comes.
        """
        count_held = getattr(getattr(self, "wsgi", None), "count_held_threads", lambda: 0)
        if count_held() < self.cfg.threads:
            return
        _logger.error("worker.given_up", extra={"stuck": self.cfg.threads})
        self._is_given_up, self.alive = True, False
        self.cfg.set("graceful_timeout", GIVE_UP_S)  # of this process
        getattr(self.wsgi, "stop", lambda: None)()
        self.tpool.shutdown(wait=False, cancel_futures=True)

    def enqueue_req(self, conn: TConn) -> None:
        """Give a request to a thread; where none will ever be free, refuse it."""
        if self._is_given_up and isinstance(conn, Connection):
            self._give_up(conn)
        else:
            super().enqueue_req(conn)

    def _give_up(self, conn: Connection) -> None:
        status, detail = HTTPStatus.SERVICE_UNAVAILABLE, "The server is busy; try again."
        _send_problem(conn.sock, status, detail, retry_after_s=1)
        self._linger(conn)

    # -- heads that do not come -----------------------------------------------------------------

    def _end_pending(self, conn: TConn) -> None:
        if isinstance(conn, Connection) and conn.head and self.alive:
            self._refuse(conn, HTTPStatus.REQUEST_TIMEOUT, "The request came too slowly.")
        else:
            self._end_waiting(conn, self.pending_conns)

    def _make_room(self, now: float) -> None:
        """Close what waits for nothing, so that slow clients do not keep all others out.

        Done here and not in `accept`, where events of these connections may be under way.
        """
        waiting_s = (
            (self.lingering_conns, LINGER_S),
            (self.pending_conns, HEAD_TIMEOUT_S),
            (self.keepalived_conns, self.cfg.keepalive),
        )
        for waiting, limit_s in waiting_s:
            for conn in list(islice(waiting, ROOM_CONNECTIONS)):
                if conn.timeout - limit_s <= now - ROOM_AFTER_S:
                    self._end_waiting(conn, waiting)
                    self._accepts_from = 0.0

    def _cap_keepalive(self, deadline: float) -> None:
        """A stopping worker: idle connections go by `deadline`, those that sent nothing too."""
        super()._cap_keepalive(deadline)
        if not self._is_given_up:
            self._note_stopping()  # it may have come to the end of its `max_requests`
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    # -- the request, in a thread ---------------------------------------------------------------

    def handle(self, conn: TConn) -> Any:
        """Serve one request; whatever it raises ends here and not in the main loop."""
        try:
            return super().handle(conn)
        except BaseException:
            self.log.exception("Error handling request")
            return False

    def handle_request(self, req: Any, conn: TConn) -> Any:
        """Run the app; a client that stops reading or sending gives the thread back."""
        conn.sock.settimeout(STALL_TIMEOUT_S)
        return super().handle_request(req, conn)

    def _keepalive_after(self, conn: TConn, keepalive: Any) -> bool:
        if not keepalive:
            return False
        if _is_read(conn.parser.mesg.body):
            return True  # whatever the time: a thread may not have run for longer than `DRAIN_S`
        return bool(conn.parser.finish_body(deadline=time.monotonic() + DRAIN_S))

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer a request that is no HTTP as the host does: problem document, request id."""
        recorded = _Recorder()
        super().handle_error(req, recorded, addr, exc)
        parts = recorded.sent.split(b" ", 2)
        status = HTTPStatus(int(parts[1])) if len(parts) > 1 else HTTPStatus.INTERNAL_SERVER_ERROR
        what = (
            "could not be answered"
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR
            else "is malformed"
        )
        _send_problem(client, status, f"The request {what}.")

    # -- after the request, in the main loop ----------------------------------------------------

    def finish_request(self, conn: TConn, fs: Future[Any]) -> None:
        """Keep the connection for its next request, or let it end without waiting for it."""
        if self.room is not None and isinstance(conn, Connection):
            for other in self.room.end(conn.tenant):
                self._hand_over(other)
        if not isinstance(conn, Connection):
            super().finish_request(conn, fs)
        elif fs.cancelled():
            self._give_up(conn)
        elif not fs.result():
            self._linger(conn)
        elif buffered := conn.parser.unreader.take_buffered():
            self._await_head(conn, buffered)
        else:
            super().finish_request(conn, fs)

    def _linger(self, conn: Connection) -> None:
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(conn)  # the client has gone
            return
        conn.timeout = time.monotonic() + LINGER_S
        self.lingering_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_last_bytes, conn))

    def _on_last_bytes(self, conn: Connection, client: socket.socket) -> None:
        try:
            size = len(client.recv(_RECEIVE_BYTES))
        except OSError:
            size = 0
        conn.drained_bytes += size
        if not size or conn.drained_bytes > LINGER_LIMIT_BYTES:
            self._end_waiting(conn, self.lingering_conns)

    def _end_waiting(self, conn: TConn, waiting: deque[Any]) -> None:
        self._leave_poller(conn, waiting)
        self._drop(conn)

    def _leave_poller(self, conn: TConn, waiting: deque[Any]) -> None:
        waiting.remove(conn)
        self.poller.unregister(conn.sock)

    def _drop(self, conn: TConn) -> None:
        self.nr_conns -= 1
        conn.close()


def _is_read(body: Any) -> bool:
    """Whether the app has read a request's body to its end, or there was none.

    gunicorn's `finish_body` asks the clock first: on a busy machine it closed connections of which
    the answer had said that they stay, and the client's next request on it was lost.
    """
    reader = body.reader  # of a body with a length, or of a chunked one
    is_at_end = getattr(reader, "length", None) == 0 or getattr(reader, "parser", body) is None
    return is_at_end and not body.failed and not body.buf.tell()


class _Recorder:
    """Stands in for the socket while gunicorn writes its HTML error page."""

    def __init__(self) -> None:
        self.sent = b""

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def gettimeout(self) -> float:
        return 0.0


def _send_problem(
    client: socket.socket, status: HTTPStatus, detail: str, retry_after_s: int | None = None
) -> None:
    request_id = secrets.token_hex(16)
    body = ProblemAnswer(status, detail).body({REQUEST_ID: request_id})
    later = "" if retry_after_s is None else f"Retry-After: {retry_after_s}\r\n"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\n"
        f"Content-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n"
        f"{later}X-Request-ID: {request_id}\r\n\r\n"
    )
    try:
        client.setblocking(False)
        client.sendall(head.encode("latin-1") + body)
    except OSError:
        pass  # the client has gone, or does not read
