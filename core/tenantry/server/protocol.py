"""The HTTP protocol of a worker: what follows when bytes of a client arrive.

A connection goes through these steps, without a thread of its own until its request runs:

    head arrives → verdict → (100 Continue) → body arrives → its turn → the app → response

Each step runs on the leader's thread and does not wait. `Admission` decides; `Exchange` runs.
"""

import math
import select
import socket
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

from tenantry.http.environ import REQUEST_ID
from tenantry.http.problem import ProblemResponse, Refusal
from tenantry.http.request_head import CHUNKED, HEAD_END, BadRequestError, Framing, HeadReader
from tenantry.http.request_id import new_request_id
from tenantry.http.response_close import ResponseCutError
from tenantry.server.admission import HOST_BUSY, Admission
from tenantry.server.connection import (
    BODY,
    BUSY,
    HEAD,
    LINGERING,
    SENDING,
    Connection,
    HijackableSocket,
)
from tenantry.server.environ import EnvironTemplate
from tenantry.server.exchange import Exchange
from tenantry.server.loop import Loop
from tenantry.server.proxy_line import read_proxy_line
from tenantry.server.request_body import ChunkedBody, LengthBody, TooLargeError
from tenantry.server.serving import Serving
from tenantry.server.wait_queue import WaitQueue

HEAD_TIMEOUT_S = 10.0
"""Seconds that a client has from the start of a connection, or from the first bytes of the next
request, to the end of the request head."""

LINGER_S = 2.0
"""Seconds for which a closed connection is drained, so that the client gets the end of its response
and not a reset (RFC 9112 §9.6)."""

LINGER_BYTES = 1 << 20
"""Maximum bytes that a client may send after its response, enough for a full loopback buffer."""

STOP_KEEPALIVE_S = 2.0
"""Seconds for which a stopping worker keeps idle connections, for requests that are on their
way."""

CHECK_S = 0.5
"""Seconds between two checks of the time limits of connections, and of the heartbeat."""

ROOM_TIMEOUT_S = 30.0
"""Seconds that a request body waits for room in the budget, before its request gets 503."""

CLOSE_IDLE_AFTER_S = 1.0
"""Seconds of idleness after which a worker without room for a new connection may close a
connection."""

CLOSE_AT_ONCE = 8
"""Minimum number of idle connections that may be closed at once, oldest first. In a large worker,
the number is an eighth of all connections."""

RECEIVE_BYTES = 64 << 10
CHUNKED_RECEIVE_BYTES = 16 << 10
"""Bytes of a chunked body that are read at once: at most 7 ms of the leader's time, for chunks of
one byte."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

TOO_SLOW = ProblemResponse(HTTPStatus.REQUEST_TIMEOUT, "The request arrived too slowly.")
TOO_LARGE = ProblemResponse(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body of this request is larger than allowed here."
)
INCOMPLETE = ProblemResponse(HTTPStatus.BAD_REQUEST, "The body of this request is incomplete.")

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


class HttpProtocol:
    """Takes each connection of a worker from one step to the next, on the leader's thread.

    Args:
        app: the WSGI application.
        admission: decides about requests.
        serving: what all exchanges of the worker share.
        reader: reads request heads.
        worker: gunicorn's worker, for its settings, its hooks and its log.
        max_threads: maximum number of threads, including the leader.
    """

    def __init__(
        self,
        app: Any,
        admission: Admission,
        serving: Serving,
        reader: HeadReader,
        worker: Any,
        *,
        max_threads: int,
    ) -> None:
        self._app = app
        self._admission = admission
        self._route = admission.route
        self._serving = serving
        self._reader = reader
        self._worker = worker
        self._keepalive_s = float(worker.cfg.keepalive or 0)
        self._max_connections: int = worker.cfg.worker_connections
        self._waiting: WaitQueue[Exchange] = WaitQueue()
        self._hooks = worker.request_hooks()
        self._log = worker.log
        self._started = 0
        self._max_requests = worker.max_requests
        self._run: Callable[[Exchange], None] = (
            partial(Exchange.respond, app=app, log=worker.log)
            if self._hooks is None
            else self._run_with_hooks
        )
        self._is_stopping = False
        self.must_stop = False
        """Set by the worker's main thread to stop the worker."""
        self._check_connections_at = 0.0
        self.ready: Mapping[int, Callable[[Connection], object]] = {
            HEAD: self._receive_head,
            BODY: self._receive_body,
            BUSY: self._ignore,
            SENDING: self._send_rest,
            LINGERING: self._drain,
        }
        self.loop = Loop(self, max_threads=max_threads)
        serving.on_backlog = partial(self.loop.call, self._watch_backlog)

    @property
    def has_ended(self) -> bool:
        """Whether a stopping worker has no connection left."""
        return self._is_stopping and not self.loop.connections

    # -- what the loop calls ----------------------------------------------------------------------

    def on_accept(self, sock: socket.socket, peer: Any, listener: EnvironTemplate) -> None:
        """Begin a new connection; usually, its first head has already arrived."""
        connection = Connection(sock, peer, listener)
        connection.since = self.loop.now
        connection.deadline = self.loop.now + HEAD_TIMEOUT_S
        self.loop.connections[connection.fd] = connection
        if len(self.loop.connections) >= self._max_connections:
            self._serving.keeps_alive = False  # each response makes room for another client
            self.loop.accept_connections(False)
            self._make_room(self.loop.now)
        self._receive_head(connection)

    def _ignore(self, connection: Connection) -> None:
        """Send what a running request has written; what arrives belongs to the next request."""
        try:
            is_sent = connection.flush()
        except ResponseCutError:  # the thread of the request notices that the client has left
            is_sent = True
        if is_sent:
            self.loop.unwatch(connection)
        else:
            self.loop.watch(connection, _OUT)

    def _watch_backlog(self, connection: Connection) -> None:
        """Send the beginning of a response while the request still runs."""
        if connection.state == BUSY and connection.outbox is not None:
            self.loop.watch(connection, _OUT)

    def _close(self, connection: Connection) -> None:
        """Close a connection, which makes room for another one."""
        self.loop.forget(connection)
        if not self._is_stopping and len(self.loop.connections) < self._max_connections:
            self._serving.keeps_alive = self._keepalive_s > 0
            self.loop.accept_connections(True)

    def on_fault(self, connection: Connection) -> None:
        """Release what the request of a connection holds."""
        exchange, connection.exchange = connection.exchange, None
        if exchange is not None:
            if exchange.record is not None:
                self._admission.leave(exchange.record)
                exchange.record = None
            if exchange.body is not None:
                exchange.body.close()

    def serve(
        self, item: tuple[Callable[[Exchange], Any], Exchange, Callable[..., object]]
    ) -> None:
        """Do work for an exchange in a thread, then continue on the leader's thread."""
        work, exchange, then = item
        try:
            result = work(exchange)
        except BaseException as error:  # noqa: BLE001 - raised again where the loop handles it
            self.loop.call(self._raise, exchange.connection, error)
        else:
            self.loop.call(then, exchange.connection, exchange, result)

    @staticmethod
    def _raise(_: Connection, error: BaseException) -> None:
        raise error

    def on_check(self, now: float) -> float:
        """Start or refuse waiting requests, and end connections that are out of time."""
        if self._waiting.tenants:
            self._start_waiting()
            for exchange in list(self._waiting.expired(now)):
                self.loop.guard(self._expire, exchange.connection, exchange)
        if self.must_stop and not self._is_stopping:
            self._stop()
        if now >= self._check_connections_at:
            self._check_connections_at = now + CHECK_S
            self._worker.on_check()
            self._serving.update_date()
            self._check_connections(now)
        due_at = self._waiting.due_at(now, self._admission.rest_s)
        return min(due_at, self._check_connections_at)

    def _check_connections(self, now: float) -> None:
        for connection in list(self.loop.connections.values()):
            # The thread of a running request watches the client itself.
            if connection.deadline <= now and connection.state != BUSY:
                self.loop.guard(self._time_out, connection)
        has_room = len(self.loop.connections) < self._max_connections
        if not has_room or self.loop.lacks_resources:
            self._make_room(now)
        if not self._is_stopping:
            self.loop.accept_connections(has_room)

    def _stop(self) -> None:
        """Accept no more connections, and close each connection after its next response."""
        self._is_stopping, self._serving.keeps_alive = True, False
        self.loop.stop_accepting()
        deadline = time.monotonic() + STOP_KEEPALIVE_S
        for connection in self.loop.connections.values():
            if connection.state == HEAD:
                connection.deadline = min(connection.deadline, deadline)

    # -- the head ---------------------------------------------------------------------------------

    def _receive_head(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            self.loop.watch(connection, _IN)
            return
        except OSError:
            data = b""  # the client has left
        if not data:
            if connection.buffer:  # the client may have closed only its sending side
                self._reject(connection, _INCOMPLETE_HEAD)
            else:
                self._close(connection)
            return
        if connection.buffer:
            connection.buffer += data
        else:
            connection.buffer = data
            if data != b"\r\n":  # an empty line before a request gives no more time
                connection.deadline = self.loop.now + HEAD_TIMEOUT_S
        self._next_request(connection)

    def _next_request(self, connection: Connection) -> None:
        """Begin the request at the start of the buffer, if its head is complete."""
        listener: EnvironTemplate = connection.listener
        try:
            is_new = listener.proxy_mode and not connection.has_proxy_line
            if is_new and not read_proxy_line(connection, listener):
                self.loop.watch(connection, _IN)
                return
            buffer = connection.buffer
            if buffer.startswith(b"\r\n"):  # one empty line may come first (RFC 9112 §2.2)
                buffer = connection.buffer = _without_empty_line(buffer)
            end = buffer.find(HEAD_END, max(0, connection.searched_bytes - 3))
            if end < 0:
                self._reader.check_start(buffer, connection.searched_bytes)
                connection.searched_bytes = len(buffer)
                if connection.state != HEAD:
                    connection.state = HEAD
                    connection.deadline = self.loop.now + HEAD_TIMEOUT_S
                self.loop.watch(connection, _IN)
                return
            connection.buffer, connection.searched_bytes = buffer[end + 4 :], 0
            environ = listener.new_environ(connection)
            framing = self._reader.read(buffer[: end + 4], environ)
        except BadRequestError as error:
            self._reject(connection, error)
            return
        exchange = connection.exchange = Exchange(connection, environ, framing, self._serving)
        environ["gunicorn.socket"] = HijackableSocket(exchange=exchange)
        connection.state = BUSY
        connection.deadline = math.inf
        exchange.tenant = self._route(environ, None)
        if not framing.body_bytes:
            self._admit(exchange)
        elif self._admission.reads_body(environ):
            self._begin_body(exchange)
        else:
            self._drop_body(exchange)
            self._admit(exchange)

    def _reject(self, connection: Connection, error: BadRequestError) -> None:
        """Answer a malformed request, and close its connection."""
        environ = {"REQUEST_METHOD": "", REQUEST_ID: new_request_id()}
        environ["REMOTE_ADDR"] = connection.listener.new_environ(connection)["REMOTE_ADDR"]
        exchange = Exchange(connection, environ, _CLOSING, self._serving)
        connection.exchange = exchange
        self._refuse(exchange, (ProblemResponse(error.status, error.detail), []))

    # -- the body ---------------------------------------------------------------------------------

    def _begin_body(self, exchange: Exchange) -> None:
        """Let the head decide, before the client is told to send the body."""
        if self._admission.is_quick(exchange.environ):
            self._go_on_with_body(exchange, self._admission.refusal(exchange.environ))
        elif exchange.tenant not in self._waiting.tenants and self._enter(exchange):
            self._start_one(exchange.connection, exchange)  # a verdict that waits needs a thread
        else:
            self._wait(exchange)

    def _decide_by_head(self, exchange: Exchange) -> Any:
        try:
            return self._admission.refusal(exchange.environ)
        finally:
            self._admission.leave(exchange.record)
            exchange.record = None

    def _decided(self, _: Connection, exchange: Exchange, refusal: Any) -> None:
        self._start_waiting()
        self._go_on_with_body(exchange, refusal)

    def _go_on_with_body(self, exchange: Exchange, refusal: Any) -> None:
        if refusal is not None:
            self._refuse(exchange, refusal)
            return
        connection, size_bytes = exchange.connection, exchange.framing.body_bytes
        spool = exchange.body = exchange.new_spool()
        if size_bytes == CHUNKED:
            max_bytes = self._admission.max_body_bytes(exchange.environ)
            exchange.receiving = ChunkedBody(spool, max_bytes)
        else:
            exchange.receiving = LengthBody(spool, size_bytes)
        connection.state = BODY
        connection.begin_moving(self.loop.now)
        if exchange.framing.expects_continue and not connection.buffer:
            connection.send(CONTINUE, exchange)
        if connection.buffer:
            self._feed(exchange, connection.buffer)
        else:
            self._receive_body(connection)

    def _receive_body(self, connection: Connection) -> None:
        exchange = connection.exchange
        assert exchange is not None  # noqa: S101 - the state is BODY
        is_chunked = exchange.framing.body_bytes == CHUNKED
        data = connection.receive(CHUNKED_RECEIVE_BYTES if is_chunked else RECEIVE_BYTES)
        if data is None:
            self.loop.watch(connection, _IN)
        elif not data:
            self._refuse(exchange, (INCOMPLETE, []))
        else:
            connection.note_moved(len(data))
            self._feed(exchange, connection.buffer + data if connection.buffer else data)

    def _feed(self, exchange: Exchange, data: bytes) -> None:
        """Add what has arrived to the body, and go on when the body is complete."""
        connection, receiving = exchange.connection, exchange.receiving
        assert receiving is not None  # noqa: S101 - the caller has set it
        try:
            taken, has_room = receiving.feed(data)
        except BadRequestError as error:
            self._refuse(exchange, (ProblemResponse(error.status, error.detail), []))
            return
        except TooLargeError:
            self._refuse(exchange, (TOO_LARGE, []))
            return
        connection.buffer = data[taken:]
        if receiving.is_complete:
            self._admit(exchange)
        elif has_room:
            self.loop.watch(connection, _IN)
        else:  # the client has to wait, not the leader
            self.loop.unwatch(connection)
            exchange.waits_for_room_since = exchange.waits_for_room_since or self.loop.now
            connection.deadline = self.loop.now  # try again at the next tick

    def _retry_room(self, _: Connection, exchange: Exchange) -> None:
        """Continue with a body that waits for room in the budget."""
        since = exchange.waits_for_room_since
        exchange.waits_for_room_since = 0.0
        exchange.connection.begin_moving(self.loop.now)
        self._feed(exchange, exchange.connection.buffer)
        if exchange.waits_for_room_since:
            exchange.waits_for_room_since = since

    # -- its turn ---------------------------------------------------------------------------------

    def _admit(self, exchange: Exchange) -> None:
        """Run a complete request, or let it wait for its turn, or refuse it."""
        connection, tenant = exchange.connection, exchange.tenant
        connection.state = BUSY
        connection.deadline = math.inf
        if tenant in self._admission.over and tenant and exchange.body is None:
            refusal = self._admission.known_refusal(exchange.environ)
            if refusal is not None:
                self._refuse(exchange, refusal)
                return
        # A request that arrives later does not overtake one of the same tenant that waits.
        if tenant not in self._waiting.tenants:
            exchange.record = self._admission.enter(exchange.environ)
            if exchange.record is not None:
                self._start(exchange)
                return
        self._wait(exchange)

    def _wait(self, exchange: Exchange) -> None:
        if self._waiting.add(exchange.tenant or "", exchange, self.loop.now):
            self.loop.check_at = min(
                self.loop.check_at, self._waiting.due_at(self.loop.now, self._admission.rest_s)
            )
        else:
            self._refuse(exchange, self._admission.busy(exchange.tenant or ""))

    def _expire(self, _: Connection, exchange: Exchange) -> None:
        self._refuse(exchange, self._admission.busy(exchange.tenant or ""))

    def _start_waiting(self) -> None:
        for exchange in list(self._waiting.ready(self._enter)):
            # As calls, because an inline request may start other waiting requests.
            self.loop.call(self._start_one, exchange.connection, exchange)

    def _enter(self, exchange: Exchange) -> bool:
        exchange.record = self._admission.enter(exchange.environ)
        return exchange.record is not None

    def _start_one(self, _: Connection, exchange: Exchange) -> None:
        is_undecided = exchange.framing.body_bytes and exchange.body is None
        is_undecided = is_undecided and self._admission.reads_body(exchange.environ)
        if is_undecided and not exchange.record.is_over:
            self.loop.hand_off((self._decide_by_head, exchange, self._decided))
        else:
            self._start(exchange)

    def _start(self, exchange: Exchange) -> None:
        """Run a request: on this thread if it is likely to be quick."""
        if exchange.record.is_over:
            self._refuse(exchange, self._admission.busy(exchange.tenant or ""))
            return
        if exchange.body is not None:
            self._add_input(exchange)
        self._started += 1
        if self._started >= self._max_requests:
            self._worker.end_soon()
        if not exchange.record.is_quick:
            self.loop.hand_off((self._run, exchange, self._after))
        elif self.loop.run_inline(self._run, exchange):
            self._after(exchange.connection, exchange)
        else:
            self.loop.call(self._after, exchange.connection, exchange)

    @staticmethod
    def _add_input(exchange: Exchange) -> None:
        environ, body = exchange.environ, exchange.body
        assert body is not None  # noqa: S101 - the caller has checked
        environ["wsgi.input"] = body.as_input()
        environ["CONTENT_LENGTH"] = str(body.size_bytes)
        environ.pop("HTTP_TRANSFER_ENCODING", None)

    def _run_with_hooks(self, exchange: Exchange) -> None:
        """Run a request with gunicorn's hooks and gunicorn's access log."""
        environ, begun = exchange.environ, time.monotonic()
        request = _request_for_hooks(exchange)
        assert self._hooks is not None  # noqa: S101 - the only caller has checked
        pre_request, post_request, log_access = self._hooks
        log = self._log
        try:
            if pre_request is not None:
                pre_request(self._worker, request)
        except Exception:
            log.exception("Exception in pre_request hook")
        exchange.respond(self._app, log)
        took = timedelta(seconds=time.monotonic() - begun)
        try:
            if log_access:
                log.access(exchange, request, environ, took)
            if post_request is not None:
                post_request(self._worker, request, environ, exchange)
        except Exception:
            log.exception("Exception in the access log or the post_request hook")

    # -- after the response -----------------------------------------------------------------------

    def _after(self, connection: Connection, exchange: Exchange, _: object = None) -> None:
        """Continue with a connection whose request has run."""
        connection.exchange = None
        exchange.is_over = True
        record = exchange.record
        if record is not None and record.is_in_flight:
            self._admission.leave(record)
        if self._waiting.tenants:
            self._start_waiting()
        if connection.outbox is not None:
            connection.state = SENDING
            connection.sent_exchange = exchange
            self.loop.watch(connection, _OUT)
        else:
            self._finish(connection, exchange)

    def _send_rest(self, connection: Connection) -> None:
        try:
            is_sent = connection.flush()
        except ResponseCutError:
            self._close(connection)
            return
        if is_sent and connection.sent_exchange is not None:
            self._finish(connection, connection.sent_exchange)

    def _finish(self, connection: Connection, exchange: Exchange) -> None:
        """Wait for the next request of a connection, or close the connection."""
        connection.sent_exchange = None
        if exchange.is_hijacked:
            self._close(connection)
        elif exchange.is_kept_alive:
            connection.since = self.loop.now
            if connection.buffer:  # the state stays BUSY, so nothing is received meanwhile
                self.loop.call(self._next_request, connection)
                return
            connection.state = HEAD
            keepalive_s = STOP_KEEPALIVE_S if self._is_stopping else self._keepalive_s
            connection.deadline = self.loop.now + keepalive_s
            if connection.mask != _IN:
                self.loop.watch(connection, _IN)
        else:
            self._linger(connection)

    def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer a request without running it."""
        connection = exchange.connection
        if exchange.body is None:
            self._drop_body(exchange)
        elif exchange.receiving is not None:
            exchange.is_kept_alive = exchange.is_kept_alive and exchange.receiving.is_complete
            exchange.body.close()
            exchange.body = None
        connection.state = BUSY
        problem, headers = refusal
        try:
            exchange.refuse(problem, headers)
        except ResponseCutError:
            exchange.cut()
        self._admission.note_refusal(
            exchange.environ, exchange.tenant, problem, exchange.sent_bytes
        )
        self._after(connection, exchange)

    @staticmethod
    def _drop_body(exchange: Exchange) -> None:
        """Pass over a body that nobody reads; if it is not here yet, the connection closes."""
        connection, size_bytes = exchange.connection, exchange.framing.body_bytes
        if not size_bytes:
            return
        is_here = 0 < size_bytes <= len(connection.buffer)
        exchange.is_kept_alive = exchange.is_kept_alive and is_here
        connection.buffer = connection.buffer[size_bytes:] if is_here else b""

    def _linger(self, connection: Connection) -> None:
        """Close a connection without a reset: the client may still be sending (RFC 9112 §9.6)."""
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection)
            return
        connection.state = LINGERING
        connection.buffer = b""
        connection.deadline = self.loop.now + LINGER_S
        self.loop.watch(connection, _IN)

    def _drain(self, connection: Connection) -> None:
        data = connection.receive(RECEIVE_BYTES)
        if data is None:
            return
        connection.drained_bytes += len(data)
        if not data or connection.drained_bytes > LINGER_BYTES:
            self._close(connection)

    # -- time limits ------------------------------------------------------------------------------

    def _time_out(self, connection: Connection) -> None:
        exchange = connection.exchange
        if connection.state == HEAD and connection.buffer:
            self._reject(connection, _TOO_SLOW)
        elif connection.state == HEAD and (data := connection.receive(RECEIVE_BYTES)):
            connection.buffer = data  # a request that has arrived since the last poll
            connection.state, connection.deadline = BUSY, math.inf
            self.loop.call(self._next_request, connection)
        elif connection.state == BODY and exchange is not None:
            since = exchange.waits_for_room_since
            if since and self.loop.now - since >= ROOM_TIMEOUT_S:
                self._refuse(exchange, (HOST_BUSY, []))
            elif since:
                # As a call, because the request may run at once, and another thread may become the
                # leader meanwhile.
                connection.deadline = math.inf
                self.loop.call(self._retry_room, connection, exchange)
            else:
                self._refuse(exchange, (TOO_SLOW, []))
        else:
            self._close(connection)

    def _make_room(self, now: float) -> None:
        """Close idle and slow connections, so that slow clients do not keep new clients out.

        Of connections with a request, only those of the tenant with the most of them are closed.
        """
        old = [
            connection
            for connection in self.loop.connections.values()
            if connection.since <= now - CLOSE_IDLE_AFTER_S
        ]
        idle = [one for one in old if one.state in (HEAD, LINGERING)]
        if not idle:
            idle = _of_greatest_tenant([one for one in old if one.state in (BODY, SENDING)])
        most = max(CLOSE_AT_ONCE, self._max_connections // 8)
        for connection in sorted(idle, key=lambda one: one.since)[:most]:
            if connection.state == HEAD:  # unless a request has just arrived
                self.loop.guard(self._time_out, connection)
            else:
                self.on_fault(connection)
                self.loop.forget(connection)


_CLOSING = Framing(0, is_kept_alive=False, expects_continue=False, is_http_1_0=False)
_INCOMPLETE_HEAD = BadRequestError(
    HTTPStatus.BAD_REQUEST, "The head of this request is incomplete."
)
_TOO_SLOW = BadRequestError(TOO_SLOW.status, TOO_SLOW.detail)


def _of_greatest_tenant(connections: list[Connection]) -> list[Connection]:
    """Return the connections of the tenant that has the most of them."""
    of_tenants: dict[str | None, list[Connection]] = {}
    for connection in connections:
        exchange = connection.exchange or connection.sent_exchange
        tenant = None if exchange is None else exchange.tenant
        of_tenants.setdefault(tenant, []).append(connection)
    return max(of_tenants.values(), key=len, default=[])


def _without_empty_line(buffer: bytes) -> bytes:
    if buffer.startswith(HEAD_END):
        raise BadRequestError(HTTPStatus.BAD_REQUEST, "The request line is empty.")
    return buffer[2:]


def _request_for_hooks(exchange: Exchange) -> SimpleNamespace:
    """Return a request as gunicorn's hooks and gunicorn's access log expect it."""
    environ = exchange.environ
    fields = [
        (key.removeprefix("HTTP_").replace("_", "-"), value)
        for key, value in environ.items()
        if key.startswith("HTTP_") or key in ("CONTENT_TYPE", "CONTENT_LENGTH")
    ]
    return SimpleNamespace(
        method=environ["REQUEST_METHOD"],
        uri=environ["RAW_URI"],
        path=environ["PATH_INFO"],
        query=environ["QUERY_STRING"],
        version=(1, int(not exchange.framing.is_http_1_0)),
        headers=fields,
        scheme=environ["wsgi.url_scheme"],
        body=environ["wsgi.input"],
    )
