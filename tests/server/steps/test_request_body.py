"""A request body arrives piece by piece, wherever its bytes are cut."""

from collections.abc import Iterator

import pytest

from tenantry.http.request_head import BadRequestError
from tenantry.server.spool import Spool, SpoolBudget
from tenantry.server.steps.request_body import (
    LINE_BYTES,
    TRAILERS,
    ChunkedBody,
    LengthBody,
    TooLargeError,
)


@pytest.fixture(name="spool")
def _spool() -> Iterator[Spool]:
    spool = Spool(SpoolBudget(), "acme")
    yield spool
    spool.close()


def _content(spool: Spool) -> bytes:
    return spool.read_at(0, 1 << 20)


def _fed(body: LengthBody | ChunkedBody, data: bytes, *, at_once: int = 1) -> bytes:
    """Feed bytes as they arrive, `at_once` bytes at a time; return the remaining bytes."""
    buffer = b""
    for start in range(0, len(data), at_once):
        buffer += data[start : start + at_once]
        if not body.is_complete:
            taken, has_room = body.feed(buffer)
            assert has_room
            buffer = buffer[taken:]
    return buffer


# -- a body with a length --------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_a_length_ends_a_body(spool: Spool, at_once: int) -> None:
    """A body takes its bytes, and leaves the bytes of the next request."""
    body = LengthBody(spool, 5)

    left = _fed(body, b"helloGET", at_once=at_once)

    assert (b"hello", b"GET", True) == (_content(spool), left, body.is_complete)


def test_a_body_without_bytes_is_complete(spool: Spool) -> None:
    """A body of length 0 needs no bytes."""
    assert LengthBody(spool, 0).is_complete


def test_a_body_without_room_takes_nothing() -> None:
    """If the budget is used up, a body takes no bytes from the connection's buffer."""
    budget = SpoolBudget(memory_bytes=2, disk_bytes=2)
    spool = Spool(budget, "acme")
    bodies = LengthBody(spool, 5), ChunkedBody(spool, None)

    assert [(0, False), (3, False)] == [bodies[0].feed(b"hello"), bodies[1].feed(b"5\r\nhello")]
    assert 0 == spool.size_bytes


# -- a chunked body --------------------------------------------------------------------------------

CHUNKS = b'5;a=1;b="x;\\"y"\r\nhello\r\n00A ; c\r\n0123456789\r\n0\r\nX: 1\r\nY:2\r\n\r\n'


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 1000])
def test_a_chunked_body_is_decoded(spool: Spool, at_once: int) -> None:
    """A chunked body with extensions and trailers is decoded, and the next request remains."""
    body = ChunkedBody(spool, None)

    left = _fed(body, CHUNKS + b"GET", at_once=at_once)

    assert (b"hello0123456789", b"GET", True) == (_content(spool), left, body.is_complete)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"x\r\n",
        b"-5\r\n",
        b"+5\r\n",
        b"0x5\r\n",
        b"5_0\r\n",
        b" 5\r\n",
        b"5 5\r\n",
        b"\xb2\r\n",
        b"1" * 16 + b"\r\n",
        b"5\n",
        b"5\r5",
        b"5;\x00\r\n",
        b"5;a=\r\n",
        b'5;a="b\r\n',
        b"3\r\nabcd\r\n",
        b"3\r\nabc\n",
        b"3\r\nabcX\r\n",
        b"0\r\nnonsense\r\n",
        b"0\r\n: 1\r\n",
        b"0\r\nX : 1\r\n",
        b"0\r\n X: 1\r\n",
        b"0\r\nX: \x00\r\n",
        b"0\r\nX\n",
        b"0\r\nHost: a\r\n",
        b"0\r\ncontent-length: 5\r\n",
        b"0\r\nTransfer-Encoding: chunked\r\n",
        b"0\r\nAuthorization: x\r\n",
        b"5;%s\r\n" % (b"a" * LINE_BYTES),
        b"5;%s" % (b"a" * (LINE_BYTES + 1)),
        b"0\r\n" + b"X: 1\r\n" * (TRAILERS + 1),
    ],
)
def test_a_malformed_chunk_is_refused(spool: Spool, data: bytes) -> None:
    """A body whose end two servers could see at different bytes is refused (RFC 9112 §7.1)."""
    body = ChunkedBody(spool, None)

    with pytest.raises(BadRequestError) as caught:
        _fed(body, data + b"0\r\n\r\n", at_once=1000)

    assert 400 == caught.value.status


@pytest.mark.parametrize(("data", "is_too_large"), [(b"5\r\nhello\r\n3\r\n", False),
                                                    (b"5\r\nhello\r\n4\r\n", True),
                                                    (b"9\r\n", True)])  # fmt: skip
def test_a_chunk_beyond_the_maximum_is_refused_at_its_first_line(
    spool: Spool, data: bytes, is_too_large: bool
) -> None:
    """A chunk that is too large is refused before its bytes arrive."""
    body = ChunkedBody(spool, 8)

    if is_too_large:
        with pytest.raises(TooLargeError):
            body.feed(data)
    else:
        assert (len(data), True) == body.feed(data)


def test_tiny_chunks_are_refused_when_they_are_mostly_framing(spool: Spool) -> None:
    """A body that consists mostly of framing is refused, because decoding it takes long."""
    body = ChunkedBody(spool, None)
    chunk = b"1;%s\r\na\r\n" % (b"x" * 1000)

    def feed_all() -> None:
        for _ in range(2000):
            body.feed(chunk)

    with pytest.raises(BadRequestError):
        feed_all()

    assert 1000 < spool.size_bytes < 1200


def test_honest_small_chunks_pass(spool: Spool) -> None:
    """A body of 300 kB in chunks of one byte passes."""
    body = ChunkedBody(spool, None)
    for _ in range(300):
        body.feed(b"1\r\na\r\n" * 1000)
    body.feed(b"0\r\n\r\n")

    assert (300_000, True) == (spool.size_bytes, body.is_complete)
