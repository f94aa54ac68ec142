"""Receives a request body without a thread, piece by piece as the client sends it.

A body ends after its `Content-Length`, or after its last chunk (RFC 9112 §7.1). The bytes go into a
`Spool`; a reader never takes bytes of the next request.
"""

import re
from http import HTTPStatus

from tenantry.http.request_head import BadRequestError
from tenantry.server.spool import Spool

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t -\x7e\x80-\xff])*+"'
_EXTENSION = rb"[ \t]*+;[ \t]*+%b(?:[ \t]*+=[ \t]*+(?:%b|%b))?+" % (_TOKEN, _TOKEN, _QUOTED)
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:%b)*+" % _EXTENSION)
_TRAILER = re.compile(rb"%b:[\t\x20-\x7e\x80-\xff]*+" % _TOKEN)

LINE_BYTES = 4096
"""Maximum bytes of a chunk's first line, with its extensions."""

TRAILERS = 100
"""Maximum number of trailer fields, which the server checks and drops (RFC 9110 §6.5.1)."""

FRAMING_SHARE = 16
"""Maximum ratio of the bytes of framing to the bytes of the body plus 64 KiB."""

_FORBIDDEN_TRAILERS = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"trailer", b"authorization", b"te"}
)


class TooLargeError(Exception):
    """A body is larger than its tenant allows."""


class LengthBody:
    """A body with a `Content-Length`."""

    def __init__(self, spool: Spool, size_bytes: int) -> None:
        self.spool = spool
        self._left_bytes = size_bytes

    @property
    def is_complete(self) -> bool:
        """Whether the whole body has arrived."""
        return not self._left_bytes

    def feed(self, data: bytes) -> tuple[int, bool]:
        """Take bytes; return how many bytes were taken, and whether the budget sufficed."""
        piece = data[: self._left_bytes]
        if not self.spool.write(piece):
            return 0, False
        self._left_bytes -= len(piece)
        return len(piece), True


class ChunkedBody:
    """A chunked body.

    Args:
        spool: gets the decoded bytes.
        max_bytes: maximum size of the decoded body; None for no maximum.
    """

    def __init__(self, spool: Spool, max_bytes: int | None) -> None:
        self.spool = spool
        self.is_complete = False
        self._max_bytes = max_bytes
        self._left_bytes = 0  # bytes of the current chunk that have not arrived
        self._is_in_chunk = False
        self._is_in_trailers = False
        self._trailers = 0
        self._framing_bytes = 0

    def feed(self, data: bytes) -> tuple[int, bool]:
        """Take whole lines and bytes of chunks.

        Return how many bytes, and whether the budget sufficed.

        Raises:
            BadRequestError: the framing is malformed.
            TooLargeError: the body is larger than `max_bytes`.
        """
        taken = 0
        while not self.is_complete:
            if self._left_bytes:
                piece = data[taken : taken + self._left_bytes]
                if not piece:
                    break
                if not self.spool.write(piece):
                    return taken, False
                taken += len(piece)
                self._left_bytes -= len(piece)
                continue
            end = data.find(b"\r\n", taken)
            if end < 0:
                self._check_rest(data[taken:])
                break
            self._read_line(data[taken:end])
            self._count_framing(end + 2 - taken)
            taken = end + 2
        return taken, True

    def _read_line(self, line: bytes) -> None:
        if len(line) > LINE_BYTES:
            raise _malformed()
        if self._is_in_trailers:
            self._read_trailer(line)
        elif self._is_in_chunk:  # a chunk's bytes end with an empty line
            if line:
                raise _malformed()
            self._is_in_chunk = False
        else:
            self._begin_chunk(line)

    def _begin_chunk(self, line: bytes) -> None:
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise _malformed()
        size = int(match[1], 16)
        if self._max_bytes is not None and self.spool.size_bytes + size > self._max_bytes:
            raise TooLargeError
        self._left_bytes, self._is_in_chunk = size, size > 0
        self._is_in_trailers = not size

    def _read_trailer(self, line: bytes) -> None:
        if not line:
            self.is_complete = True
            return
        self._trailers += 1
        name = line.partition(b":")[0].lower()
        is_bad = not _TRAILER.fullmatch(line) or name in _FORBIDDEN_TRAILERS
        if is_bad or self._trailers > TRAILERS:
            raise _malformed()

    def _count_framing(self, size_bytes: int) -> None:
        """Limit the bytes of framing: a client can send a megabyte as a million chunks."""
        self._framing_bytes += size_bytes
        if self._framing_bytes > FRAMING_SHARE * (self.spool.size_bytes + (64 << 10)):
            raise _malformed()

    @staticmethod
    def _check_rest(rest: bytes) -> None:
        """Check the beginning of a line that has not arrived completely."""
        if len(rest) > LINE_BYTES or b"\n" in rest or b"\r" in rest[:-1]:
            raise _malformed()


def _malformed() -> BadRequestError:
    return BadRequestError(HTTPStatus.BAD_REQUEST, "The chunked body of the request is malformed.")
