"""The host can match and refuse a request from its raw head, without parsing the request."""

import json
from http import HTTPStatus

import pytest

from tenantry.http.problem import ProblemResponse
from tenantry.http.raw_head import is_whole_request, match_prefix, render_response

MOUNTS = {"/acme": "acme", "/clients/initech": "initech"}
HEAD = b"GET /acme/ HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    ("target", "mount"),
    [
        (b"/acme", "acme"),
        (b"/acme/", "acme"),
        (b"/acme?x=/globex", "acme"),
        (b"/acme/clients/initech/a/b", "acme"),
        (b"/acme/Images/A.JPG?x=%2f", "acme"),
        (b"/acme/%2e%2e/x", "acme"),
        (b"/clients/initech/x", "initech"),
        (b"/clients", None),
        (b"/acmecorp", None),
        (b"/acme;p=1", None),
        (b"/acme%2fx", None),
        (b"/%61cme/", None),
        (b"//acme/", None),
        (b"/ACME/", None),
        (b"http://evil.test/acme/", None),
        (b"*", None),
        (b"/", None),
    ],
)
def test_a_head_names_a_mount_or_nothing(target: bytes, mount: str | None) -> None:
    """A raw request head leads to the same tenant as Werkzeug's dispatcher, or to none."""
    assert mount == match_prefix(b"GET " + target + b" HTTP/1.1\r\n\r\n", MOUNTS.get)


@pytest.mark.parametrize(
    ("head", "is_whole"),
    [
        (HEAD + b"\r\n", True),
        (HEAD + b"Connection: keep-alive\r\n\r\n", True),
        (HEAD + b"Connection: close\r\n\r\n", False),
        (HEAD + b"Connection: keep-alive, upgrade\r\n\r\n", False),
        (HEAD + b"CONTENT-LENGTH : 5\r\n\r\n", False),
        (HEAD + b"X: y\r\n Transfer-Encoding: chunked\r\n\r\n", False),
        (HEAD + b"X: y\nContent: 1\r\n\r\n", False),
        (b"GET /acme/ HTTP/1.0\r\n\r\n", False),
        (b"GET  /acme/ HTTP/1.1\r\n\r\n", False),
    ],
)
def test_only_a_plain_head_is_a_whole_request(head: bytes, is_whole: bool) -> None:
    """A raw head is a whole request only if no body follows and the connection stays open."""
    assert is_whole == is_whole_request(head)


def test_a_response_is_complete() -> None:
    """A refusal of a raw request is a complete problem document, with request ID and headers."""
    problem = ProblemResponse(HTTPStatus.SERVICE_UNAVAILABLE, "Full.", retry_after_s=1)
    head = HEAD + b"x-request-id: abc-1\r\n\r\n"

    start, _, body = render_response(problem, head, [("X-More", "7")], keep_alive=True).partition(
        b"\r\n\r\n"
    )

    assert [
        b"HTTP/1.1 503 Service Unavailable",
        b"Content-Type: application/problem+json",
        b"Content-Length: %d" % len(body),
        b"Cache-Control: no-store",
        b"Retry-After: 1",
        b"X-More: 7",
        b"X-Request-ID: abc-1",
        b"Connection: keep-alive",
    ] == start.split(b"\r\n")
    assert ("Full.", "abc-1") == (json.loads(body)["detail"], json.loads(body)["request_id"])


def test_a_response_to_head_has_no_body_and_replaces_a_bad_request_id() -> None:
    """A refusal of a HEAD request has no body, and replaces an invalid request ID."""
    problem = ProblemResponse(HTTPStatus.SERVICE_UNAVAILABLE, "Full.")
    head = b"HEAD /acme/ HTTP/1.1\r\nX-Request-ID: no good\r\n\r\n"

    start, _, body = render_response(problem, head, keep_alive=False).partition(b"\r\n\r\n")

    assert (b"", True) == (body, start.endswith(b"\r\nConnection: close"))
    assert b"no good" not in start
    assert b"X-Request-ID: " in start
