"""PostgreSQL connections that notice a server that is frozen, as `docker pause` leaves it.

The system that it runs on keeps its connections and acknowledges all that it is sent, so neither
TCP nor libpq ever gives up. From one connection nobody can tell a server that is silent from a
query that is long: so who has waited asks for a word at a new one, without logging in.

This room imports psycopg: import it for a URL that does.
"""

import os
import socket
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Protocol

from psycopg import Connection, OperationalError
from psycopg.pq import TransactionStatus

ASK_AFTER_S = 1.0
"""How long a query may be silent before the server is asked whether it is there at all."""

ASK_AGAIN_S = 5.0
"""How long one that is there may be silent until it is asked again: each costs it a process."""

ANSWER_S = 2.0
"""How long a server may take to say a word to somebody new: as long as it may to connect."""

_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
"""The shortest question that every server answers, with one byte, before it knows who asks."""


class Listener(Protocol):
    """Whoever is told about one server. Thread-safe."""

    is_frozen: bool
    """Whether the server was silent when it was asked last."""

    def doubt(self, is_answering: Callable[[], bool]) -> None:
        """Find out by `is_answering` whether it is frozen, unless somebody does so already."""


class WatchedConnection(Connection[Any]):
    """Raises `OperationalError`, and is closed, when its server turns out to be frozen."""

    listener: Listener | None = None

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """Do what psycopg does, and look up when nothing has come for a while."""
        return super().wait(self._watched(gen), *args, **kwargs)

    def _watched(self, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Pass on what psycopg's steps and its loop say to each other: 0 for each 0.1 s of none."""
        ask_at = 0.0  # none has been silent yet
        try:
            wanted = next(steps)
            while True:
                ready = yield wanted
                ask_at = 0.0 if ready else self._look_up(ask_at)
                wanted = steps.send(ready)
        except StopIteration as end:
            return end.value

    def _look_up(self, ask_at: float) -> float:
        """Ask if it is time to; return when it is the next time.

        Raises:
            OperationalError: the server is frozen.
        """
        if self.listener is None:
            return ask_at
        now = time.monotonic()
        if ask_at and now >= ask_at:
            self.listener.doubt(lambda: is_answering(self.pgconn.socket))
            ask_at = time.monotonic() + ASK_AGAIN_S
        if self.listener.is_frozen:
            self.pgconn.finish()
            raise OperationalError("the server answers neither a query nor a new connection")
        return ask_at or now + ASK_AFTER_S


def connect(listener: Listener, *args: Any, **options: Any) -> WatchedConnection:
    """Connect as `psycopg.connect` does."""
    connection = WatchedConnection.connect(*args, **options)
    connection.listener = listener
    return connection


def roll_back(connection: WatchedConnection) -> None:
    """Roll back what was begun: a dialect's `do_rollback`, which SQLAlchemy calls twice a session.

    At its end, and when its connection comes back to the pool. The second time there is nothing,
    but psycopg takes its lock and its loop to find that out: 2 % of a session with one query.
    """
    ours = connection.pgconn
    if ours.transaction_status != TransactionStatus.IDLE or ours.pipeline_status:
        connection.rollback()


def is_answering(one: int) -> bool:
    """Whether the server at the other end of a socket says a word at a new one.

    Whatever else goes wrong is no sign of silence: who refuses or hangs up is awake.
    """
    with suppress(OSError), socket.socket(fileno=os.dup(one)) as ours:
        family, address = ours.family, ours.getpeername()
        with socket.socket(family, socket.SOCK_STREAM) as other:
            other.settimeout(ANSWER_S)
            try:
                other.connect(address)
                other.sendall(_SSL_REQUEST)
                other.recv(1)
            except (TimeoutError, BlockingIOError):  # or the queue of a socket file is full
                return False
    return True
