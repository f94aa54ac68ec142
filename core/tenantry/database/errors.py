"""What a request gets when its tenant's database cannot serve it. Opens nothing, logs nothing."""

import math
from http import HTTPStatus

from flask import has_request_context, request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from tenantry.http.problem import ProblemResponse

DOWN = "The database of this application does not answer; try again later."
FULL = "The database of this application takes no more data."

FULL_RETRY_AFTER_S = 60
"""What clients are told when it is full: an operator has to make room."""


class DatabaseDownError(HTTPException):
    """The tenant's database cannot serve: 503 with `Retry-After`, as `application/problem+json`.

    It carries its response, so that Flask and Flask-RESTful both answer with it as it is. Its
    cause says why; the client is not told.
    """

    code: int = HTTPStatus.SERVICE_UNAVAILABLE.value
    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self, retry_after_s: float, detail: str = DOWN) -> None:
        self.retry_after_s = max(1, math.ceil(retry_after_s))
        answer = ProblemResponse(self.status, detail, retry_after_s=self.retry_after_s)
        body = answer.body(request.environ if has_request_context() else {})
        status, headers = answer.head(len(body))
        super().__init__(detail, Response(body, status, headers))


class DatabaseFullError(DatabaseDownError):
    """The tenant's database has no room for a write: 507 (RFC 4918 §11.5). Reads go on."""

    code = HTTPStatus.INSUFFICIENT_STORAGE.value
    status = HTTPStatus.INSUFFICIENT_STORAGE

    def __init__(self) -> None:
        super().__init__(FULL_RETRY_AFTER_S, FULL)
