"""Defines the errors that a request gets if the database cannot serve it."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

from flask import has_request_context, request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from tenantry.errors import TenantryError
from tenantry.http.problem import ProblemResponse

DOWN = "The database of this application does not respond. Try again later."
READ_ONLY = "The database of this application is read-only now. Try again later."
UNSTORABLE = "The database of this application cannot store a character of this request."
FULL = "The database of this application cannot store more data."
CONNECTIONS_IN_USE = "All database connections are in use. Try again later."

FULL_RETRY_AFTER_S = 60
"""Value of `Retry-After` while the database is full, because an operator has to free space."""


READ_ONLY_RETRY_AFTER_S = 10
"""Value of `Retry-After` while the database is read-only, usually until a standby is promoted."""


class DatabaseDownError(HTTPException):
    """The database cannot serve a request. The client gets 503 with `Retry-After`.

    The exception contains a response of the type `application/problem+json`, which Flask and
    Flask-RESTful send unchanged. The reason for the error is in `__cause__`, and is not visible to
    clients.
    """

    code: int = HTTPStatus.SERVICE_UNAVAILABLE.value
    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self, retry_after_s: float, detail: str = DOWN) -> None:
        self.retry_after_s = max(1, math.ceil(retry_after_s))
        problem = ProblemResponse(self.status, detail, retry_after_s=self.retry_after_s)
        environ = request.environ if has_request_context() else {}
        status, headers, body = problem.render(environ)
        super().__init__(detail, Response(body, status, headers))


class DatabaseFullError(DatabaseDownError):
    """The database has no space left. The client gets 507 (RFC 4918 §11.5)."""

    code = HTTPStatus.INSUFFICIENT_STORAGE.value
    status = HTTPStatus.INSUFFICIENT_STORAGE

    def __init__(self) -> None:
        super().__init__(FULL_RETRY_AFTER_S, FULL)


class UnstorableTextError(HTTPException):
    """The database cannot store a text.

    Examples of such a text are `€` in a LATIN1 database, and NUL in any PostgreSQL database. The
    client gets 422 (RFC 9110 §15.5.21).
    """

    code: int = HTTPStatus.UNPROCESSABLE_ENTITY.value

    def __init__(self) -> None:
        problem = ProblemResponse(HTTPStatus.UNPROCESSABLE_ENTITY, UNSTORABLE)
        environ = request.environ if has_request_context() else {}
        status, headers, body = problem.render(environ)
        super().__init__(UNSTORABLE, Response(body, status, headers))


class ConnectionCounts(NamedTuple):
    """Connections of a tenant. A connection that is being opened or closed counts as in use."""

    checked_out: int
    idle: int


class ConnectionsExhaustedError(TenantryError):
    """A request waited too long, because all database connections of the process were in use."""

    def __init__(
        self, owner: str, waited_s: float, limit: int, counts: Mapping[str, ConnectionCounts]
    ) -> None:
        self.owner = owner
        self.waited_s = waited_s
        self.limit = limit
        self.counts = dict(counts)
        super().__init__(owner, waited_s, limit, self.counts)

    def __str__(self) -> str:
        """Return a message with the tenant, the wait, and the connections of all tenants."""
        largest_first = sorted(self.counts.items(), key=lambda item: (-sum(item[1]), item[0]))
        shares = ", ".join(
            f"{owner} {count.checked_out} in use, {count.idle} idle"
            for owner, count in largest_first
        )
        return (
            f"tenant {self.owner!r} waited {self.waited_s:.1f} s for a database connection, but "
            f"all {self.limit} connections are taken: {shares}. Raise TENANTRY_DB_CONNECTIONS, "
            "or find out which endpoint keeps connections."
        )
