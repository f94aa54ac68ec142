"""The host's own answers are problem documents (RFC 9457)."""

import json
from http import HTTPStatus

import pytest
from werkzeug.test import Client

from tenantry.http.environ import REQUEST_ID
from tenantry.http.problem import ProblemResponse


def test_an_answer_has_the_five_members() -> None:
    """Type, title, status, detail and the id of the request; status line and length fit."""
    answer = Client(ProblemResponse(HTTPStatus.FORBIDDEN, "Not “here”.")).get(
        "/", environ_overrides={REQUEST_ID: "id-1"}
    )

    assert "403 FORBIDDEN" == answer.status.upper()
    assert "application/problem+json" == answer.content_type
    assert answer.headers["Content-Length"] == str(len(answer.data))
    assert {
        "type": "about:blank",
        "title": "Forbidden",
        "status": 403,
        "detail": "Not “here”.",
        "request_id": "id-1",
    } == json.loads(answer.data)


def test_an_answer_is_not_kept_by_caches() -> None:
    """A refusal of now says nothing about later."""
    answer = Client(ProblemResponse(HTTPStatus.SERVICE_UNAVAILABLE, "Later.")).get("/")

    assert "no-store" == answer.headers["Cache-Control"]


def test_head_gets_the_head_only() -> None:
    """An answer to HEAD has the length that GET would get, and no body."""
    app = ProblemResponse(HTTPStatus.NOT_FOUND, "No.")

    head, get = Client(app).head("/"), Client(app).get("/")

    assert (b"", get.headers["Content-Length"]) == (head.data, head.headers["Content-Length"])


@pytest.mark.parametrize(
    ("answer", "header", "value"),
    [
        (ProblemResponse(HTTPStatus.SERVICE_UNAVAILABLE, "-", retry_after_s=3), "Retry-After", "3"),
        (ProblemResponse(HTTPStatus.SERVICE_UNAVAILABLE, "-", retry_after_s=0), "Retry-After", "0"),
        (ProblemResponse(HTTPStatus.SERVICE_UNAVAILABLE, "-"), "Retry-After", None),
        (ProblemResponse(HTTPStatus.METHOD_NOT_ALLOWED, "-", allow="GET"), "Allow", "GET"),
        (ProblemResponse(HTTPStatus.NOT_FOUND, "-"), "Allow", None),
    ],
)
def test_a_header_is_there_when_it_says_something(
    answer: ProblemResponse, header: str, value: str | None
) -> None:
    """`Retry-After` and `Allow` appear with the answers that have them."""
    assert value == Client(answer).get("/").headers.get(header)
