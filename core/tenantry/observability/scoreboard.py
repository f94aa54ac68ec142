"""The board: which requests are in flight in each process of a host, in memory that they share.

The server's master makes it before it forks, so it still says what a worker was doing when that
worker is dead, by `kill -9` too. Each process writes its own row only, and nobody takes a lock: a
reader may see a request a moment early or late. Knows nothing of a request but whose it is, and
nothing of builds, which are on it too, but whom they are for.
"""

import mmap
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b

ROWS = 128
"""Processes of one host, those that are just leaving included."""

CELLS = 128
"""Requests of one process that the board can show; more are served unseen."""

_NAME_BYTES = 64  # a tenant's name has at most 63
_WORD_BYTES = 8
_ROW_WORDS = 4 * CELLS
_FREE, _SERVING, _STOPPING = range(3)
_BUILD_OF_ONE = 2  # instead of 0, which says that a cell is empty


@dataclass(frozen=True, slots=True)
class Tag:
    """A tenant's name as the board writes it: made once, by `tag`."""

    tenant: str
    name: bytes
    number: int
    """Odd; of 10,000 names no two have the same (one chance in 10^11)."""


def tag(tenant: str) -> Tag:
    """Return how the board writes a tenant's name."""
    digest = blake2b(tenant.encode(), digest_size=_WORD_BYTES).digest()
    return Tag(
        tenant, tenant.encode().ljust(_NAME_BYTES, b"\0"), int.from_bytes(digest, "little") | 1
    )


@dataclass(frozen=True)
class InFlight:
    """A request, or a build, that was in flight when somebody looked."""

    tenant: str
    thread_id: int
    """The system's number of the thread that runs it (`threading.get_native_id`)."""
    begun_ns: int
    """When it came in, on the monotonic clock, which all processes of a machine share."""
    ident: int
    """Python's number of that thread (`threading.get_ident`)."""
    is_build: bool = False
    """Whether an instance is built; then no request has a slot for it."""


class Scoreboard:
    """One host's board. It is never closed: it goes with the last process that has it."""

    def __init__(self) -> None:
        # 1.5 MiB reserved; pages that nobody writes take no memory.
        words_bytes = ROWS * (1 + _ROW_WORDS) * _WORD_BYTES
        self._memory = mmap.mmap(-1, words_bytes + ROWS * CELLS * _NAME_BYTES)
        self._words = memoryview(self._memory)[:words_bytes].cast("Q")  # states, then the rows
        self._names = memoryview(self._memory)[words_bytes:]

    def claim(self) -> "Row | None":
        """Return an empty row for a process that is about to start; None when all are taken.

        For the master alone, or for a process that shares its board with nobody.
        """
        for number in range(ROWS):
            if self._words[number] == _FREE:
                return Row(self, self._words, self._names, number)
        return None

    def processes(self) -> int:
        """Return how many processes serve now and are to go on."""
        return self._words[:ROWS].tolist().count(_SERVING)

    def count(self, whose: Tag) -> int:
        """Return how many requests of a tenant are in flight, over all processes."""
        total = 0
        for number, state in enumerate(self._words[:ROWS].tolist()):
            if state != _FREE:
                first = _first_word(number)
                total += self._words[first : first + CELLS].tolist().count(whose.number)
        return total

    def in_flight(self) -> Counter[str]:
        """Return how many requests of each tenant are in flight, over all processes."""
        states = enumerate(self._words[:ROWS].tolist())
        rows = (self.in_flight_in(number) for number, state in states if state != _FREE)
        return Counter(one.tenant for row in rows for one in row if not one.is_build)

    def in_flight_in(self, number: int) -> list[InFlight]:
        """Return what is in flight in one process, by its row, in no order."""
        first, found = _first_word(number), []
        for cell, tenant in enumerate(self._words[first : first + CELLS].tolist()):
            if tenant:
                start = (number * CELLS + cell) * _NAME_BYTES
                name = bytes(self._names[start : start + _NAME_BYTES]).rstrip(b"\0")
                word = first + CELLS + cell
                thread, begun_ns, ident = self._words[word : word + 2 * CELLS + 1 : CELLS].tolist()
                with suppress(UnicodeDecodeError):  # it is being written
                    is_build = not tenant % 2
                    found.append(InFlight(name.decode(), thread, begun_ns, ident, is_build))
        return found


class Row:
    """What one process has in flight. Thread-safe in that process; any other may read it.

    Made by `Scoreboard.claim`; the master ends it by `free`, when the process is gone.
    """

    def __init__(
        self, board: Scoreboard, words: "memoryview[int]", names: "memoryview[int]", number: int
    ) -> None:
        first = _first_word(number)
        self.board = board
        self._states, self._number = words[:ROWS], number
        self._tenants = words[first : first + CELLS]
        self._threads = words[first + CELLS : first + 2 * CELLS]
        self._begun_ns = words[first + 2 * CELLS : first + 3 * CELLS]
        self._idents = words[first + 3 * CELLS : first + 4 * CELLS]
        self._names = names[number * CELLS * _NAME_BYTES : (number + 1) * CELLS * _NAME_BYTES]
        self._unused = deque(range(CELLS))  # its own methods are atomic
        for cell in range(CELLS):
            self._tenants[cell] = 0
        self._states[number] = _SERVING

    def enter(self, whose: Tag, *, is_build: bool = False) -> int | None:
        """Note that a request has come in on this thread; return its cell, for `leave`.

        None where no cell is unused: then it is not seen. A build is shown, and not counted.
        """
        try:
            cell = self._unused.popleft()
        except IndexError:
            return None
        self._names[cell * _NAME_BYTES : (cell + 1) * _NAME_BYTES] = whose.name
        self._threads[cell] = threading.get_native_id()
        self._begun_ns[cell] = time.monotonic_ns()
        self._idents[cell] = threading.get_ident()
        # Last: from here on it counts; a build's number is even, which is no tenant's.
        self._tenants[cell] = whose.number ^ is_build or _BUILD_OF_ONE
        return cell

    def leave(self, cell: int) -> None:
        """Note that the request has ended; for each `enter`, once."""
        self._tenants[cell] = 0
        self._unused.appendleft(cell)

    def in_flight(self) -> list[InFlight]:
        """Return what is in flight, in no order."""
        return self.board.in_flight_in(self._number)

    def stop(self) -> None:
        """Note that the process is to end: that its requests are cut is no fault of theirs."""
        self._states[self._number] = _STOPPING

    @property
    def is_stopping(self) -> bool:
        """Whether the process was to end."""
        return self._states[self._number] == _STOPPING

    def free(self) -> None:
        """Let another process have the row; for the master, once, when this one is gone."""
        self._states[self._number] = _FREE


def _first_word(number: int) -> int:
    return ROWS + number * _ROW_WORDS
