"""Keep-alive clients that note the status of each answer, whatever it is."""

import threading
import time
from dataclasses import dataclass, field

from loads import Connection

PAUSE_S = 0.01


@dataclass
class RequestContext:
    """One answer."""

    at: float
    """When it was complete."""
    seconds: float
    status: int


@dataclass
class Visitor:
    """A client of one tenant."""

    port: int
    tenant: str
    answers: list[RequestContext] = field(default_factory=list)

    def ask_until(self, is_over: threading.Event) -> None:
        """Ask again and again."""
        connection = Connection(self.port)
        while not is_over.wait(PAUSE_S):
            start = time.perf_counter()
            try:
                status, _ = connection.get(f"/{self.tenant}/")
            except (OSError, EOFError):  # an idle connection that the server closed
                connection.close()
                connection = Connection(self.port)
                continue
            now = time.perf_counter()
            self.answers.append(RequestContext(now, now - start, status))
            if connection.is_over:
                connection.close()
                connection = Connection(self.port)
        connection.close()
