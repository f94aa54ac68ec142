"""Clients for `mixed.py`: each session is one connection with random requests, and may abort.

Every request has a nonce, in its address and as its `X-Request-ID`. Every response must return the
nonce of its own request, and a response with status 200 must contain what the request asked for.
"""

import contextlib
import hashlib
import random
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field

TENANTS = ("acme", "globex", "initech", "umbrella", "hooli")
MEGABYTE = 1 << 20
BODY_BYTES = (0, 10, 3_000, 70_000, 700_000)
"""Sizes of request bodies. The host keeps the largest size on disk."""

TIMEOUT_S = 60.0
ABORTING = 0.3
"""Share of sessions that abort."""

ENDPOINT = """\
import hashlib, time
from flask import Blueprint, Response, current_app, request

mixed_bp = Blueprint("mixed", __name__)


def answer(body):
    headers = {"X-Nonce": request.args["nonce"], "X-Tenant": current_app.config["APP_NAME"]}
    return Response(body, headers=headers)


@mixed_bp.route("/echo", methods=["GET", "POST"])
def echo():
    return answer(request.args["nonce"] + hashlib.sha1(request.get_data()).hexdigest())


@mixed_bp.route("/download")
def download():
    return answer(request.args["nonce"] * (1048576 // 32))


@mixed_bp.route("/stream")
def stream():
    nonce = request.args["nonce"]
    return answer(nonce * 100 for _ in range(20))


@mixed_bp.route("/slow")
def slow():
    time.sleep(0.1)
    return answer(request.args["nonce"])
"""
"""The endpoint of all tenants. A nonce has 32 characters."""


@dataclass(frozen=True)
class Request:
    """One request, and the response that it must get."""

    tenant: str
    method: str
    page: str
    nonce: str
    body: bytes | None = None
    chunk_bytes: int = 0
    """Size in bytes of the chunks of the body; 0 for a body with a length."""
    is_last: bool = False
    """Whether the request asks for `Connection: close`."""

    def raw(self) -> bytes:
        """Return the bytes of the request."""
        lines = [
            f"{self.method} /{self.tenant}/{self.page}?nonce={self.nonce} HTTP/1.1",
            "Host: localhost",
            f"X-Request-ID: {self.nonce}",
        ]
        body = self.body or b""
        if self.chunk_bytes:
            lines.append("Transfer-Encoding: chunked")
            starts = range(0, len(body), self.chunk_bytes)
            pieces = [body[start : start + self.chunk_bytes] for start in starts]
            body = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces) + b"0\r\n\r\n"
        elif self.body is not None:
            lines.append(f"Content-Length: {len(body)}")
        if self.is_last:
            lines.append("Connection: close")
        return "\r\n".join([*lines, "", ""]).encode() + body

    def expected(self) -> bytes:
        """Return the body of the response."""
        if self.method == "HEAD":
            return b""
        nonce = self.nonce.encode()
        if self.page == "echo":
            return nonce + hashlib.sha1(self.body or b"").hexdigest().encode()
        return nonce * {"slow": 1, "stream": 2000, "download": MEGABYTE // 32}[self.page]


@dataclass
class Report:
    """What the sessions of one or more clients saw."""

    counts: Counter[str] = field(default_factory=Counter)
    mixed: list[str] = field(default_factory=list)
    """Responses that belong to another request, or that have a wrong body."""
    lost: list[str] = field(default_factory=list)
    """Complete requests that got no complete response, although the client did not abort."""

    def add(self, other: "Report") -> None:
        """Add what other sessions saw."""
        self.counts += other.counts
        self.mixed += other.mixed
        self.lost += other.lost


class _AbortedError(Exception):
    """The client has ended its own session."""


@dataclass(frozen=True)
class Response:
    """One response."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def is_closing(self) -> bool:
        """Whether the server announced that it closes the connection."""
        return self.fields.get("connection", "") == "close"


class Session:
    """One connection, from `connect` until `run` returns.

    Args:
        port: the server's port.
        rng: the source of all random numbers.
        report: gets what the session saw.
    """

    def __init__(self, port: int, rng: random.Random, report: Report) -> None:
        self._rng = rng
        self._report = report
        self._buffer = b""
        self._is_slow = rng.random() < 0.2
        self._is_half_closed = False
        self._abort = rng.choice(("reset", "close", "half-close"))
        is_aborting = rng.random() < ABORTING
        is_sending = rng.random() < 0.5
        far = int(10 ** rng.uniform(0, 6))  # equally often in a head and in a large body
        self._send_left = far if is_aborting and is_sending else None
        self._receive_left = far if is_aborting and not is_sending else None
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)

    def run(self) -> None:
        """Send the requests of the session, and check the responses."""
        rng = self._rng
        is_pipelined = rng.random() < 0.25
        requests = [
            random_request(rng, has_body=not is_pipelined) for _ in range(rng.randint(1, 6))
        ]
        try:
            if is_pipelined:
                self._report.counts["pipelined"] += len(requests)
                self._exchange(requests)
            else:
                for request in requests:
                    if self._exchange([request]):
                        break
        except _AbortedError:
            self._report.counts[f"aborted: {self._abort}"] += 1
        finally:
            self._sock.close()

    def _exchange(self, requests: list[Request]) -> bool:
        """Send requests and check their responses; return whether the server closes."""
        count = self._send(requests)
        if self._is_half_closed and count < len(requests):
            self._report.counts["aborted: half-close"] += 1
        for request in requests[:count]:
            try:
                response = self._receive(is_head=request.method == "HEAD")
            except (OSError, EOFError) as error:
                self._report.lost.append(f"{request.method} {request.page}: {error!r}")
                return True
            self._check(request, response)
            if response.is_closing:
                return True
        return self._is_half_closed

    def _check(self, request: Request, response: Response) -> None:
        self._report.counts[str(response.status)] += 1
        fields = response.fields
        is_own = fields.get("x-request-id") == request.nonce
        if response.status == 200:
            own = (request.nonce, request.tenant, request.expected())
            is_own &= own == (fields.get("x-nonce"), fields.get("x-tenant"), response.body)
        if not is_own:
            self._report.mixed.append(f"{request.nonce} {response.status} {response.body[:80]!r}")

    # -- bytes ------------------------------------------------------------------------------------

    def _send(self, requests: list[Request]) -> int:
        """Send requests; return how many were sent completely."""
        texts = [request.raw() for request in requests]
        data = b"".join(texts)
        is_cut = self._send_left is not None and self._send_left < len(data)
        if is_cut:
            data = data[: self._send_left]
        elif self._send_left is not None:
            self._send_left -= len(data)
        with contextlib.suppress(ConnectionError):  # the server may have refused and closed
            for piece in self._pieces(data):
                self._sock.sendall(piece)
        if is_cut:
            self._end()
        count, left = 0, len(data)
        for text in texts:
            left -= len(text)
            count += left >= 0
        return count

    def _pieces(self, data: bytes) -> list[bytes]:
        if not self._is_slow or len(data) < 2:
            return [data]
        middle = self._rng.randrange(1, len(data))
        time.sleep(self._rng.uniform(0, 0.05))
        return [data[:middle], data[middle:]]

    def _end(self) -> None:
        """Abort; after a half-close, the client still reads the responses."""
        if self._abort == "half-close":
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
            self._is_half_closed = True
            return
        if self._abort == "reset":
            off = struct.pack("ii", 1, 0)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, off)
        self._sock.close()
        raise _AbortedError

    def _more(self) -> None:
        if self._is_slow:
            time.sleep(self._rng.uniform(0, 0.02))
        part = self._sock.recv(16384 if self._is_slow else 262144)
        if not part:
            raise EOFError("within a response" if self._buffer else "instead of a response")
        self._buffer += part
        if self._receive_left is not None and not self._is_half_closed:
            self._receive_left -= len(part)
            if self._receive_left <= 0:
                self._end()

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            self._more()
        data, _, self._buffer = self._buffer.partition(end)
        return data

    def _take(self, size: int) -> bytes:
        parts, missing = [], size
        # The bytes stay in a list, so that a large response is joined only once.
        while len(self._buffer) < missing:
            parts.append(self._buffer)
            missing -= len(self._buffer)
            self._buffer = b""
            self._more()
        parts.append(self._buffer[:missing])
        self._buffer = self._buffer[missing:]
        return b"".join(parts)

    def _receive(self, *, is_head: bool) -> Response:
        lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        fields = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        status = int(lines[0].split()[1])
        body = b""
        if is_head:
            pass
        elif "content-length" in fields:
            body = self._take(int(fields["content-length"]))
        elif "transfer-encoding" in fields:
            parts = []
            while size := int(self._until(b"\r\n"), 16):
                parts.append(self._take(size + 2)[:-2])
            self._until(b"\r\n")
            body = b"".join(parts)
        return Response(status, fields, body)


def random_request(rng: random.Random, *, has_body: bool) -> Request:
    """Return a random request."""
    tenant, nonce, is_last = rng.choice(TENANTS), f"{rng.getrandbits(128):032x}", rng.random() < 0.1
    if has_body and rng.random() < 0.5:
        body = rng.randbytes(rng.choice(BODY_BYTES))
        chunk_bytes = rng.choice((0, 0, 1000, 50_000)) if len(body) != 10 else rng.choice((0, 1))
        return Request(tenant, "POST", "echo", nonce, body, chunk_bytes, is_last)
    page = rng.choices(("echo", "download", "stream", "slow"), (6, 1, 2, 1))[0]
    method = rng.choices(("GET", "HEAD"), (5, 1))[0]
    return Request(tenant, method, page, nonce, is_last=is_last)
