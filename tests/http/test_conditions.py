"""Conditions and ranges of requests follow RFC 9110 §13 and §14."""

from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.exceptions import HTTPException
from werkzeug.test import EnvironBuilder, run_wsgi_app
from werkzeug.wsgi import wrap_file

from conftest import KEY
from tenantry.app.factory import close_app, create_app
from tenantry.http.conditions import ConditionalResponse, find_range

CONTENT = b"0123456789"
MODIFIED = "Wed, 01 Jul 2026 12:00:00 GMT"
EARLIER, LATER = MODIFIED.replace("12:", "11:"), MODIFIED.replace("12:", "13:")
Headers = dict[str, str]

RANGES = [
    ("bytes=0-0", (0, 1)),
    ("bytes=0-", (0, 10)),
    ("bytes=9-", (9, 10)),
    ("bytes=2-99", (2, 10)),
    ("bytes=-3", (7, 10)),
    ("bytes=-99", (0, 10)),
    ("BYTES = 2-3 ", (2, 4)),
    ("bytes=,2-3,,", (2, 4)),
    ("bytes=2-3,10-", (2, 4)),
    (f"bytes=2-{10**50}", (2, 10)),
    ("bytes=0-0,-1", None),
    ("bytes=0-5,2-3", None),
    ("items=0-5", None),
    ("items=x", None),
    ("bytes", None),
    ("", None),
    ("=0-1", None),
]
"""Each row has a `Range` header, and the resulting range of ten bytes, or None for all bytes."""

UNSATISFIABLE = (
    "bytes=10-", "bytes=10-20", f"bytes={10**50}-", "bytes=-0", "bytes=10-,11-", "bytes=9-3",
    "bytes=x", "bytes=-", "bytes=", "bytes=0", "bytes=0-1-2", "bytes=+1-2", "bytes=٣-",
    "bytes=0-0,x", "bytes=--1", "bytes=" + "9" * 5000 + "-",
)  # fmt: skip

CONDITIONS: list[tuple[Headers, int]] = [
    ({"If-Match": "*"}, 200),
    ({"If-Match": '"a"'}, 200),
    ({"If-Match": '"b", "a"'}, 200),
    ({"If-Match": '"b"'}, 412),
    ({"If-Match": 'W/"a"'}, 412),
    ({"If-Match": '"b"', "If-None-Match": '"a"'}, 412),
    ({"If-Match": '"a"', "If-None-Match": '"a"'}, 304),
    ({"If-Match": '"a"', "If-Unmodified-Since": EARLIER}, 200),
    ({"If-Unmodified-Since": EARLIER}, 412),
    ({"If-Unmodified-Since": MODIFIED}, 200),
    ({"If-Unmodified-Since": LATER}, 200),
    ({"If-Unmodified-Since": "yesterday"}, 200),
    ({"If-None-Match": "*"}, 304),
    ({"If-None-Match": '"a"'}, 304),
    ({"If-None-Match": 'W/"a"'}, 304),
    ({"If-None-Match": '"b", W/"c", "a"'}, 304),
    ({"If-None-Match": '"b"'}, 200),
    ({"If-None-Match": '"b"', "If-Modified-Since": LATER}, 200),
    ({"If-None-Match": '"a"', "If-Modified-Since": EARLIER}, 304),
    ({"If-Modified-Since": EARLIER}, 200),
    ({"If-Modified-Since": MODIFIED}, 304),
    ({"If-Modified-Since": LATER}, 304),
    ({"If-Modified-Since": "yesterday"}, 200),
    ({"Range": "bytes=0-0"}, 206),
    ({"Range": "bytes=10-"}, 416),
    ({"Range": "bytes=10-", "If-None-Match": '"a"'}, 304),
    ({"Range": "bytes=10-", "If-Match": '"b"'}, 412),
    ({"Range": "bytes=0-0", "If-Match": "*"}, 206),
    ({"Range": "bytes=0-0", "If-Range": '"a"'}, 206),
    ({"Range": "bytes=0-0", "If-Range": '"b"'}, 200),
    ({"Range": "bytes=0-0", "If-Range": 'W/"a"'}, 200),
    ({"Range": "bytes=0-0", "If-Range": MODIFIED}, 206),
    ({"Range": "bytes=0-0", "If-Range": LATER}, 200),
    ({"Range": "bytes=0-0", "If-Range": EARLIER}, 200),
    ({"Range": "bytes=0-0", "If-Range": "yesterday"}, 200),
    ({"Range": "bytes=10-", "If-Range": '"b"'}, 200),
    ({"If-Range": '"b"'}, 200),
]


def sent(
    headers: Headers, method: str = "GET", content: bytes = CONTENT, etag: str = '"a"'
) -> tuple[int, dict[str, str], bytes]:
    """Return the status, headers and body that a client gets for a file."""
    file = BytesIO(content)
    environ = EnvironBuilder(method=method, headers=headers).get_environ()
    response = ConditionalResponse(wrap_file(environ, file), direct_passthrough=True)
    response.content_length = len(content)
    response.headers["ETag"] = etag
    response.last_modified = datetime(2026, 7, 1, 12, 0, 0, 999_999, tzinfo=UTC)
    try:
        response.make_conditional(environ, accept_ranges=True, complete_length=len(content))
    except HTTPException as error:
        assert file.closed
        response = error.get_response(environ)  # type: ignore[assignment]
    body, status, found = run_wsgi_app(response, environ, buffered=True)
    return int(status[:3]), dict(found), b"".join(body)


@pytest.mark.parametrize(("ranges", "expected"), RANGES)
def test_a_range_is_found(ranges: str, expected: tuple[int, int] | None) -> None:
    """Only a single range in bytes is sent as a part; other ranges get the whole content."""
    assert expected == find_range(ranges, 10)


@pytest.mark.parametrize("ranges", UNSATISFIABLE)
def test_a_range_without_bytes_is_a_416(ranges: str) -> None:
    """A range that is invalid or outside the content gets 416 with the size of the content."""
    status, headers, _ = sent({"Range": ranges.encode().decode("latin-1")})

    assert (416, "bytes */10") == (status, headers["Content-Range"])


@pytest.mark.parametrize(("headers", "status"), CONDITIONS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_conditions_have_an_order(headers: Headers, status: int, method: str) -> None:
    """Conditions are evaluated in the order of RFC 9110 §13.2.2, and HEAD ignores ranges."""
    expected = 200 if method == "HEAD" and status in {206, 416} else status

    assert expected == sent(headers, method)[0]


def test_a_part_has_its_place_and_length() -> None:
    """A response with a part of the content tells the position of the part."""
    status, headers, body = sent({"Range": "bytes=2-4"})

    assert (206, "bytes 2-4/10", "3", b"234") == (
        status, headers["Content-Range"], headers["Content-Length"], body,
    )  # fmt: skip


def test_head_has_the_headers_of_get() -> None:
    """A response to HEAD has the length of the whole content, and no body."""
    status, headers, body = sent({"Range": "bytes=2-4"}, "HEAD")

    assert (200, "10", "bytes", b"") == (
        status, headers["Content-Length"], headers["Accept-Ranges"], body,
    )  # fmt: skip


def test_nothing_changed_has_an_etag_and_no_body() -> None:
    """A 304 has the ETag, and neither a body nor a length."""
    status, headers, body = sent({"If-None-Match": "*"})

    assert (304, '"a"', None, b"") == (status, headers["ETag"], headers.get("Content-Length"), body)


def test_a_weak_etag_never_matches_strongly() -> None:
    """With a weak ETag, `If-Match` fails and `If-Range` gets the whole content."""
    match, range_ = {"If-Match": 'W/"a"'}, {"Range": "bytes=0-0", "If-Range": 'W/"a"'}

    assert [412, 200] == [sent(one, etag='W/"a"')[0] for one in (match, range_)]


@pytest.mark.parametrize("ranges", ["bytes=0-", "bytes=-1"])
def test_an_empty_file_has_no_ranges(ranges: str) -> None:
    """A range of an empty file gets the whole file, which is empty."""
    assert (200, b"") == sent({"Range": ranges}, content=b"")[::2]


def test_other_methods_have_no_conditions() -> None:
    """A response to POST ignores conditions and ranges."""
    assert 200 == sent({"If-None-Match": "*", "Range": "bytes=0-0"}, "POST")[0]


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Range": "items=0-5"}, 200), ({"If-Match": "*"}, 200), ({"Range": "bytes=0-0"}, 206),
     ({"If-Match": '"b"'}, 412), ({"Range": "bytes=99-"}, 416)],
)  # fmt: skip
def test_static_files_of_a_tenant_have_conditions(
    data_dir: Path, headers: Headers, status: int
) -> None:
    """The static files of a tenant are sent in the same way as other files."""
    static = data_dir / "acme/static"
    static.mkdir(parents=True)
    (static / "a.txt").write_bytes(CONTENT)
    keys = {"APP_NAME": "acme", "SECRET_KEY": KEY, "BLUEPRINTS": ["landing"]}
    app: Flask = create_app(keys, data_dir=data_dir)

    answer = app.test_client().get("/static/a.txt", headers=headers, buffered=True)
    close_app(app)

    assert status == answer.status_code
