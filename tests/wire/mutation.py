"""Mutated requests for the fuzzer: each depends only on the seed and on its own number."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from cases import CASES

LIMIT_BYTES = 24_000
"""Maximum size in bytes of a base case and of a mutated request, above the limits of lines and
fields."""

PREFIXES = ("acme", "globex", "clients/initech")

_BASES = tuple(
    data
    for case in CASES
    if case.listener == "plain"
    and 0 < len(data := b"".join(step for step in case.sent if isinstance(step, bytes)))
    and len(data) <= LIMIT_BYTES
)
_TOKENS = (
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b'"', b"\x0b", b"\x85", b"\xa0"),
    *(b"\r\n\r\n", b"\n\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"0", b"-1", b"ffffffff", b"_", b"%"),
    *(b"/acme", b"/globex", b"/clients", b"//", b"/..", b"/.", b"%2f", b"%00", b"%61", b"#", b"?"),
    *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Host: globex.test\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: ", b"chunked", b"HTTP/1.0", b"HEAD "),
    *(b"Connection: close\r\n", b"Connection: ", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n"),
    *(b"GET /globex/ HTTP/1.1\r\nHost: a\r\n\r\n", b" HTTP/1.1\r\n"),
    *(b"http://globex.test", b"OPTIONS * ", b"CONNECT "),
)


@dataclass(frozen=True)
class Mutant:
    """The bytes of one connection: a whole request, a mutated one, and another whole request."""

    number: int
    first_nonce: str
    first_tenant: str
    pieces: tuple[bytes, ...]
    """The bytes in the pieces that the client sends."""
    is_aborted: bool
    """Whether the client resets the connection at once, without reading."""

    @property
    def sent(self) -> bytes:
        """All bytes of the connection."""
        return b"".join(self.pieces)


def make_mutant(seed: int, number: int) -> Mutant:
    """Return the mutant with this number."""
    dice = random.Random(seed * 1_000_000_007 + number)
    nonce = f"n{number:09d}"
    tenant = dice.choice(PREFIXES)
    data = dice.choice(_BASES).replace(b" /", b" /" + dice.choice(PREFIXES).encode() + b"/", 1)
    data = data.replace(b"\r\n", f"\r\nX-Nonce: {nonce}m\r\n".encode(), 1)
    for _ in range(dice.choice((0, 1, 1, 1, 2, 2, 3, 5))):
        data = dice.choice(_MUTATIONS)(data, dice)
    sent = _whole(tenant, nonce + "a") + data[:LIMIT_BYTES] + _whole(tenant, nonce + "b")
    is_aborted = dice.random() < 0.03
    return Mutant(number, nonce + "a", tenant, _pieces(sent, dice), is_aborted)


def _whole(tenant: str, nonce: str) -> bytes:
    head = f"GET /{tenant}/ HTTP/1.1\r\nHost: acme.test\r\nX-Nonce: {nonce}\r\n\r\n"
    return head.encode()


def _pieces(sent: bytes, dice: random.Random) -> tuple[bytes, ...]:
    if dice.random() < 0.7:
        return (sent,)
    cuts = sorted(dice.randrange(len(sent)) for _ in range(dice.randrange(1, 4)))
    return tuple(sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True))


# -- mutations ------------------------------------------------------------------------------------


def _slice(data: bytes, dice: random.Random, longest: int = 40) -> tuple[int, int]:
    start = dice.randrange(len(data) + 1)
    return start, min(len(data), start + dice.randrange(longest))


def _flip(data: bytes, dice: random.Random) -> bytes:
    if not data:
        return data
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :]


def _replace(data: bytes, dice: random.Random) -> bytes:
    start, end = _slice(data, dice, 4)
    return data[:start] + dice.randbytes(end - start) + data[end:]


def _insert(data: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + dice.choice(_TOKENS) + data[at:]


def _delete(data: bytes, dice: random.Random) -> bytes:
    start, end = _slice(data, dice)
    return data[:start] + data[end:]


def _cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def _repeat(data: bytes, dice: random.Random) -> bytes:
    start, end = _slice(data, dice)
    return data[:start] + data[start:end] * dice.choice((2, 2, 3, 10, 200)) + data[end:]


def _splice(data: bytes, dice: random.Random) -> bytes:
    other = dice.choice(_BASES)
    return data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other)) :]


def _swap_case(data: bytes, dice: random.Random) -> bytes:
    start, end = _slice(data, dice)
    return data[:start] + data[start:end].swapcase() + data[end:]


def _swap_lines(data: bytes, dice: random.Random) -> bytes:
    all_lines = data.split(b"\r\n")
    first, second = dice.randrange(len(all_lines)), dice.randrange(len(all_lines))
    all_lines[first], all_lines[second] = all_lines[second], all_lines[first]
    return b"\r\n".join(all_lines)


def _repeat_line(data: bytes, dice: random.Random) -> bytes:
    all_lines = data.split(b"\r\n")
    line = dice.choice(all_lines)
    return b"\r\n".join([*all_lines[:1], *[line] * dice.choice((1, 2, 110)), *all_lines[1:]])


def _bare_line_end(data: bytes, dice: random.Random) -> bytes:
    all_lines = data.split(b"\r\n")
    if len(all_lines) < 2:
        return data
    at = dice.randrange(1, len(all_lines))
    end = dice.choice((b"\n", b"\r", b"\r\r\n", b"\n\r\n", b"\r\n ", b""))
    return b"\r\n".join(all_lines[:at]) + end + b"\r\n".join(all_lines[at:])


_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip, _replace, _insert, _insert, _delete, _cut, _repeat, _splice),
    *(_swap_case, _swap_lines, _repeat_line, _bare_line_end),
)
