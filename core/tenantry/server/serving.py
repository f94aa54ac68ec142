"""What all exchanges of a worker share."""

from collections.abc import Callable
from email.utils import formatdate

from tenantry.server.connection import Connection
from tenantry.server.spool import SpoolBudget


class Serving:
    """The state of a worker that responses depend on. The leader of the loop writes it.

    Args:
        budget: the memory and disk space for bodies of requests and responses.
        keeps_alive: whether connections stay open after a response.
    """

    def __init__(self, budget: SpoolBudget, *, keeps_alive: bool) -> None:
        self.budget = budget
        self.keeps_alive = keeps_alive
        """False once the worker stops."""
        self.on_backlog: Callable[[Connection], object] = lambda _: None
        """Function that a thread calls with a connection whose client does not accept all bytes."""
        self.date = ""
        """The present time for the `Date` field (RFC 9110 §5.6.7), at most half a second late."""
        self.update_date()

    def update_date(self) -> None:
        """Set `date` to the present time."""
        self.date = formatdate(usegmt=True)
