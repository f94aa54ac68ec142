"""What a request gets when its tenant's database cannot serve it. Opens nothing, logs nothing."""

import math
from http import HTTPStatus

from flask import has_request_context, request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from core.problem import ProblemAnswer

DETAIL = "The database of this application does not answer; try again later."


class DatabaseDownError(HTTPException):
    """The tenant's database cannot serve: 503 with `Retry-After`, as `application/problem+json`.

    It carries its response, so that Flask and Flask-RESTful both answer with it as it is. Its
    cause says why; the client is not told.
    """

    code = HTTPStatus.SERVICE_UNAVAILABLE.value
    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self, retry_after_s: float, detail: str = DETAIL) -> None:
        self.retry_after_s = max(1, math.ceil(retry_after_s))
        answer = ProblemAnswer(self.status, detail, retry_after_s=self.retry_after_s)
        body = answer.body(request.environ if has_request_context() else {})
        status, headers = answer.head(len(body))
        super().__init__(detail, Response(body, status, headers))
