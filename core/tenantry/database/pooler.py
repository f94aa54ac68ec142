"""Detects a connection pooler, such as PgBouncer, between a connection and its server."""

from typing import Any

POOLED = (
    "its URL leads to a connection pooler, and this command needs one server process for itself; "
    "name the server's own host and port"
)
"""The reason why a command cannot use a connection through a pooler, and the remedy."""


def is_pooled(driver_connection: Any, server_process: object) -> bool:
    """Whether a connection goes through a pooler, which can change the server process at any time.

    When a client connects, PostgreSQL sends the ID of the server process, which the client needs to
    cancel a query. A pooler sends another number.

    Args:
        driver_connection: the connection of the driver. Only psycopg provides the number that the
            client received.
        server_process: the result of `SELECT pg_backend_pid()`.
    """
    info = getattr(driver_connection, "info", None)
    sent = getattr(info, "backend_pid", None)
    return sent is not None and sent != server_process
