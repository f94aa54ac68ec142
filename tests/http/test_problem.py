"""Error responses of the host are problem documents (RFC 9457)."""

import json
from http import HTTPStatus

import pytest
from werkzeug.test import Client

from tenantry.http.environ import REQUEST_ID
from tenantry.http.problem import ProblemResponse


def test_a_response_has_the_five_members() -> None:
    """A problem document contains type, title, status, detail and request ID."""
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


def test_caches_do_not_store_a_response() -> None:
    """Error responses of the host have `Cache-Control: no-store`, because a retry may succeed."""
    answer = Client(ProblemResponse(HTTPStatus.SERVICE_UNAVAILABLE, "Later.")).get("/")

    assert "no-store" == answer.headers["Cache-Control"]


def test_a_response_to_head_has_no_body() -> None:
    """An error response to HEAD has the `Content-Length` of GET, and no body."""
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
def test_a_header_is_present_only_if_it_is_set(
    answer: ProblemResponse, header: str, value: str | None
) -> None:
    """A problem response has `Retry-After` (even 0) and `Allow` only if the caller sets them."""
    assert value == Client(answer).get("/").headers.get(header)


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


def test_a_browser_gets_a_page_with_the_same_content() -> None:
    """If `Accept` prefers HTML, the response is an escaped page that loads no resources."""
    problem = ProblemResponse(HTTPStatus.SERVICE_UNAVAILABLE, "Back at <noon> & “later”.")

    answer = Client(problem).get(
        "/", headers={"Accept": BROWSER}, environ_overrides={REQUEST_ID: "id-1"}
    )

    assert (503, "text/html; charset=utf-8") == (answer.status_code, answer.content_type)
    assert (
        "default-src 'none'; style-src 'unsafe-inline'"
        == (answer.headers["Content-Security-Policy"])
    )
    for text in ("Service Unavailable", "Back at &lt;noon&gt; &amp; “later”.", "id-1", "503"):
        assert text in answer.text
    assert [] == [text for text in ("http:", "https:", "//", "<script") if text in answer.text]


@pytest.mark.parametrize(
    ("accept", "is_html"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("TEXT/HTML", True),
        ("text/*", True),
        ("text/html;charset=utf-8", True),
        ("application/json;q=0.5, text/html", True),
        ("", False),
        ("*/*", False),
        ("text/html, application/json", False),
        ("text/html;q=0.5, application/json;q=0.9", False),
        ("text/html;q=0.5, application/problem+json", False),
        ("text/html;q=0", False),
        ("text/html;q=0.9, */*", False),
        ("image/png", False),
        ("\xff,;;=", False),
        ("text/html" + ", text/html" * 700, False),
    ],
)
def test_the_client_chooses_the_type_of_a_response(accept: str, is_html: bool) -> None:
    """A response is HTML only if HTML has a higher quality than JSON, and `Vary` names `Accept`.

    An `Accept` header of more than 500 bytes is not parsed, because parsing it could take 26 ms.
    """
    answer = Client(ProblemResponse(HTTPStatus.NOT_FOUND, "No.")).get(
        "/", headers={"Accept": accept}
    )

    expected = "text/html" if is_html else "application/problem+json"
    assert (expected, "Accept") == (answer.mimetype, answer.headers["Vary"])
