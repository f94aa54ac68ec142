"""What many PostgreSQL databases are at, asked on one thread over several connections at once.

A fleet is mostly at head, and then a run is connections and nothing else. psycopg's own take four
times as much of the processor as libpq's, and threads of it wait for each other on top of that.
Only the good case is here: whatever does not answer as expected is left to `revisions.look`, which
asks once more and says what is wrong.

This room imports psycopg: import it for a URL that does.
"""

import select
import time
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING

from psycopg import Error
from psycopg.conninfo import make_conninfo
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, PGconn, PollingStatus
from psycopg.pq.abc import PGconn as Line
from psycopg.pq.abc import PGresult

from core.database_url import SCHEMA_QUERY, wrong_schema
from core.revisions import QUERY_WITH_SCHEMA

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

AT_ONCE = 8
"""Connections: twice as many as keep two processors of a server busy, which takes 5 ms of one to
begin and to end each."""

PATIENCE_S = 2.0
"""How long a database may take to answer; after that nobody is asked here any more."""

_NO_TABLE = b"42P01"


def glance(databases: Iterable[tuple[str, "URL"]]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the name and the rows of each database that answers as expected, as they answer.

    Ends with the first that is silent: the rest of its server would be, too.

    Args:
        databases: name and URL of each; taken one by one.
    """
    left = iter(databases)
    asked: list[_Asked] = []
    try:
        while True:
            while len(asked) < AT_ONCE and (one := next(left, None)):
                _begin(asked, *one)
            if not asked or not _wait(asked):
                return
            for one_asked in [one for one in asked if one.has_ended]:
                asked.remove(one_asked)
                if one_asked.rows is not None:
                    yield one_asked.name, one_asked.rows
    finally:
        for one_asked in asked:
            one_asked.line.finish()


def _begin(asked: list["_Asked"], name: str, url: "URL") -> None:
    _, options = url.get_dialect()().create_connect_args(url)
    try:
        line = PGconn.connect_start(make_conninfo(**options).encode())
    except (Error, ValueError):
        return
    if line.status == ConnStatus.BAD:
        line.finish()
        return
    asked.append(_Asked(name, url, line))


def _wait(asked: list["_Asked"]) -> bool:
    """Go on with those that can; whether none has been silent for too long."""
    poll = select.poll()
    by_socket = {}
    for one in asked:
        socket = one.line.socket  # another after each address that libpq tries
        by_socket[socket] = one
        poll.register(socket, one.awaited)
    rest_s = min(one.deadline for one in asked) - time.monotonic()
    for socket, _ in poll.poll(max(rest_s, 0.0) * 1000):
        by_socket[socket].go_on()
    now = time.monotonic()
    return all(one.has_ended or now < one.deadline for one in asked)


class _Asked:
    """One database that is asked; its connection ends with its answer."""

    def __init__(self, name: str, url: "URL", line: Line) -> None:
        self.name = name
        self.line = line
        self.deadline = time.monotonic() + PATIENCE_S
        self.awaited = select.POLLOUT
        self.rows: frozenset[str] | None = None
        self.has_ended = False
        self._steps = _ask(line, url)

    def go_on(self) -> None:
        """Do what can be done now."""
        try:
            self.awaited = next(self._steps)
        except StopIteration as end:
            self.rows = end.value
            self.has_ended = True
        except (Error, ValueError):
            self.has_ended = True
        if self.has_ended:
            self.line.finish()


_Steps = Generator[int, None, frozenset[str] | None]
"""Yields which event of its socket it awaits; returns the rows, None where something is amiss."""


def _ask(line: Line, url: "URL") -> _Steps:
    while (status := line.connect_poll()) != PollingStatus.OK:
        if status == PollingStatus.FAILED:
            return None
        yield select.POLLIN if status == PollingStatus.READING else select.POLLOUT
    line.nonblocking = 1
    found = yield from _answer(line, QUERY_WITH_SCHEMA)
    rows = [] if _is_without_table(found) else _rows(found)
    if rows == []:
        schemas = _rows((yield from _answer(line, SCHEMA_QUERY)))
        schema = schemas[0][0] if schemas else None
    else:
        schema = rows[0][1] if rows else None
    if rows is None or wrong_schema(url, schema):
        return None
    return frozenset(row[0] for row in rows)


def _answer(line: Line, query: str) -> Generator[int, None, PGresult | None]:
    """Send a query; return what came last."""
    line.send_query(query.encode())
    while line.flush():
        yield select.POLLOUT
    last = None
    while True:
        while line.is_busy():
            yield select.POLLIN
            line.consume_input()
        result = line.get_result()
        if result is None:
            return last
        last = result


def _rows(result: PGresult | None) -> list[list[str]] | None:
    """Return the rows of a result; None of one that has none, or a NULL.

    Raises:
        ValueError: they are not in UTF-8.
    """
    if result is None or result.status != ExecStatus.TUPLES_OK:
        return None
    values = [
        [result.get_value(row, column) for column in range(result.nfields)]
        for row in range(result.ntuples)
    ]
    rows = [[str(value, "utf-8") for value in row if value is not None] for row in values]
    return rows if all(len(row) == result.nfields for row in rows) else None


def _is_without_table(result: PGresult | None) -> bool:
    return result is not None and result.error_field(DiagnosticField.SQLSTATE) == _NO_TABLE
