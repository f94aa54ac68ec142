"""The scoreboard: the requests and builds in flight in each process of a host.

The scoreboard is memory that the processes of a host share. The server's master creates the
scoreboard before the fork, so the master can read the requests in flight of a dead worker, even
after `kill -9`. Each process writes only to its own row, without a lock. A reader can see a request
slightly early or late.
"""

import mmap
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

ROWS = 128
"""Maximum number of concurrent processes of a host, including stopping processes."""

CELLS = 128
"""Maximum number of requests and builds that one row shows. A process can serve more requests."""

_FREE, _SERVING, _STOPPING = range(3)  # states of a row
_EMPTY, _REQUEST, _BUILD = range(3)  # states of a cell

_NAME_BYTES = 64  # a tenant's name has at most 63 bytes
_CELL = struct.Struct(f"=BQQQ{_NAME_BYTES}s")  # state, thread ID, thread identifier, start, tenant
_THREAD = struct.Struct("=QQ")  # the thread ID and the thread identifier of a cell
_STATE_BYTES = 1  # the size of the state of a row, and of a cell
_STARTS = tuple(_STATE_BYTES + cell * _CELL.size for cell in range(CELLS))
_COUNT = struct.Struct("=H")  # the number of open connections, after the cells
_COUNT_START = _STATE_BYTES + CELLS * _CELL.size
_ROW_BYTES = _COUNT_START + _COUNT.size


@dataclass(frozen=True)
class InFlight:
    """A request or a build that was in flight when the scoreboard was read."""

    tenant: str
    thread_id: int
    """The system's ID of the thread (`threading.get_native_id`)."""
    started_ns: int
    """Start on the monotonic clock, which all processes of a machine share."""
    thread_ident: int
    """Python's identifier of the thread (`threading.get_ident`)."""
    is_build: bool = False


class Scoreboard:
    """The rows of one host. Needs no closing, because the last process frees the memory."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, ROWS * _ROW_BYTES))  # 1.5 MiB, mostly untouched

    def claim_row(self) -> "Row | None":
        """Return a free row for a process that is about to start; None if no row is free.

        Call `claim_row` only in the master, or in a process that does not share its scoreboard.
        """
        for start in range(0, ROWS * _ROW_BYTES, _ROW_BYTES):
            if self._memory[start] == _FREE:
                return Row(self, self._memory[start : start + _ROW_BYTES])
        return None

    def fewest_connections(self) -> int:
        """Return the lowest number of open connections of a serving process; 0 without one."""
        counts = [
            _COUNT.unpack_from(row, _COUNT_START)[0] for row in self._rows() if row[0] == _SERVING
        ]
        return min(counts, default=0)

    def count_requests(self, tenant: str) -> int:
        """Return the number of requests of a tenant in flight, in all processes."""
        name = tenant.encode().ljust(_NAME_BYTES, b"\0")
        return sum(
            state == _REQUEST and cell_name == name
            for row in self._rows()
            for state, _, _, _, cell_name in _used_cells(row)
        )

    def requests_in_flight(self) -> Counter[str]:
        """Return the number of requests in flight per tenant, in all processes."""
        return Counter(
            each.tenant for row in self._rows() for each in _read_row(row) if not each.is_build
        )

    def _rows(self) -> Iterator[memoryview]:
        states = bytes(self._memory[::_ROW_BYTES])
        for number, state in enumerate(states.rstrip(b"\0")):
            if state != _FREE:
                yield self._memory[number * _ROW_BYTES : (number + 1) * _ROW_BYTES]


class Row:
    """The requests and builds in flight in one process. Thread-safe in that process.

    `Scoreboard.claim_row` creates a row. The master calls `free` after the end of the process.
    """

    def __init__(self, scoreboard: Scoreboard, memory: memoryview) -> None:
        self.scoreboard = scoreboard
        self._memory = memory
        self._unused = deque(range(CELLS))  # `popleft` and `appendleft` are atomic
        memory[:] = bytes(_ROW_BYTES)  # removes the requests of an earlier process
        memory[0] = _SERVING

    def enter(self, tenant: str, *, is_build: bool = False) -> int | None:
        """Show a request or a build of the calling thread; return the cell for `leave`.

        `enter` returns None if no cell is free.
        """
        try:
            cell = self._unused.popleft()
        except IndexError:
            return None
        start = _STARTS[cell]
        thread_id, ident = threading.get_native_id(), threading.get_ident()
        name, started_ns = tenant.encode(), time.monotonic_ns()
        _CELL.pack_into(self._memory, start, _EMPTY, thread_id, ident, started_ns, name)
        # The state is written last, because it makes the cell visible.
        self._memory[start] = _BUILD if is_build else _REQUEST
        return cell

    def move_to_thread(self, cell: int) -> None:
        """Show that the calling thread runs the request of a cell that another thread entered."""
        start = _STARTS[cell] + _STATE_BYTES
        _THREAD.pack_into(self._memory, start, threading.get_native_id(), threading.get_ident())

    def leave(self, cell: int) -> None:
        """Remove a request or a build from its cell. Call `leave` once for each `enter`."""
        self._memory[_STARTS[cell]] = _EMPTY
        self._unused.appendleft(cell)

    def show_connections(self, count: int) -> None:
        """Show the number of open connections of the process."""
        _COUNT.pack_into(self._memory, _COUNT_START, min(count, 65_535))

    def in_flight(self) -> list[InFlight]:
        """Return the requests and builds in flight in the process, in no particular order."""
        return _read_row(self._memory)

    def stop(self) -> None:
        """Mark the process as stopping, so that no tenant is blamed for the end of the process."""
        self._memory[0] = _STOPPING

    @property
    def is_stopping(self) -> bool:
        """Whether the process was asked to stop."""
        return self._memory[0] == _STOPPING

    def free(self) -> None:
        """Release the row. Call `free` once, after the process that owns the row has ended."""
        self._memory[0] = _FREE


def _used_cells(row: memoryview) -> Iterator[tuple[int, int, int, int, bytes]]:
    states = bytes(row[_STATE_BYTES : _COUNT_START : _CELL.size])
    for cell, state in enumerate(states.rstrip(b"\0")):  # a process uses the first cells first
        if state != _EMPTY:
            yield _CELL.unpack_from(row, _STARTS[cell])


def _read_row(row: memoryview) -> list[InFlight]:
    return [
        InFlight(tenant.rstrip(b"\0").decode(), thread_id, started_ns, ident, state == _BUILD)
        for state, thread_id, ident, started_ns, tenant in _used_cells(row)
        if state != _EMPTY
    ]
