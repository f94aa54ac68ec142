"""Helps benchmarks run keep-alive clients that record every response."""

import threading
import time
from dataclasses import dataclass, field

from loads import Connection

PAUSE_S = 0.01


@dataclass
class Reply:
    """The time and status of one response."""

    at: float
    """Time at which the response was complete."""
    seconds: float
    status: int


@dataclass
class Visitor:
    """A keep-alive client that requests pages of one tenant."""

    port: int
    tenant: str
    replies: list[Reply] = field(default_factory=list)

    def visit_until(self, stop: threading.Event) -> None:
        """Send one request after another until `stop` is set."""
        connection = Connection(self.port)
        while not stop.wait(PAUSE_S):
            start = time.perf_counter()
            try:
                status, _ = connection.get(f"/{self.tenant}/")
            except (OSError, EOFError):  # the server closed an idle connection
                connection.close()
                connection = Connection(self.port)
                continue
            now = time.perf_counter()
            self.replies.append(Reply(now, now - start, status))
            if connection.is_closing:
                connection.close()
                connection = Connection(self.port)
        connection.close()
