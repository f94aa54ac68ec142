"""`tenantry get` sends one request through the full stack, without a server."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Tenantry


@pytest.mark.usefixtures("acme")
def test_get_prints_status_headers_and_body(tenantry: Tenantry) -> None:
    """`tenantry get` prints the status line, headers and body, as in an HTTP response."""
    result = tenantry("get", "/acme/?name=Ada")

    head, _, body = result.out.partition("\n\n")
    assert ("HTTP/1.1 201 CREATED", "Ada") == (head.splitlines()[0], json.loads(body)["hello"])
    assert "" == result.err


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("/acme/nothing",), 404),
        (("/nobody/",), 404),
        (("/acme/", "--method", "delete"), 405),
        (("/acme/", "--data", "x"), 405),
        (("/acme/", "--header", "Host: a/b"), 400),
    ],
)
def test_get_ends_with_1_on_an_error_status(
    tenantry: Tenantry, words: tuple[str, ...], status: int
) -> None:
    """`tenantry get` exits with 1 if the response has a status of 400 or above."""
    result = tenantry("get", *words, "--json")

    assert (1, status) == (result.code, json.loads(result.out)["status"])


CUT = """
from flask import Blueprint, Response
cut_bp = Blueprint("cut", __name__)
@cut_bp.route("/half")
def half():
    yield "half"
    raise ValueError("no other half")
@cut_bp.route("/none")
def none():
    return Response([], headers={"Content-Length": "10"})
"""


@pytest.mark.usefixtures("data_dir")
def test_get_prints_an_incomplete_answer(
    tenantry: Tenantry,
    write_tenant: Callable[..., Path],
    write_endpoint: Callable[[str, str], str],
) -> None:
    """If an app fails while sending a body, `tenantry get` prints the bytes received so far."""
    write_tenant("acme", BLUEPRINTS=[write_endpoint("cut", CUT)])

    half, none = tenantry("get", "/acme/half"), tenantry("get", "/acme/none")

    head, _, body = half.out.partition("\n\n")
    assert (1, "HTTP/1.1 200 OK", "half") == (half.code, head.splitlines()[0], body)
    text = "the response is incomplete: the application failed; "
    assert any(line.startswith(f"tenantry: /acme/half: {text}") for line in half.err.splitlines())
    assert (1, "") == (none.code, none.out)
    text = "no response: the body is shorter than its Content-Length; "
    assert any(line.startswith(f"tenantry: /acme/none: {text}") for line in none.err.splitlines())


ECHO = """
from flask import Blueprint, request
echo_bp = Blueprint("echo", __name__)
@echo_bp.route("/", methods=["POST"])
def echo():
    return request.get_data()
"""


@pytest.mark.usefixtures("data_dir")
def test_data_comes_from_a_file_or_standard_input(
    tenantry: Tenantry,
    write_tenant: Callable[..., Path],
    write_endpoint: Callable[[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """`--data @FILE` sends the bytes of a file, and `--data -` sends standard input."""
    write_tenant("acme", BLUEPRINTS=[write_endpoint("echo", ECHO)])
    file = tmp_path / "body"
    file.write_bytes(b"a\r\nb\xc3\xa4\n")

    bodies = [tenantry("get", "/acme/", "--data", text).out for text in (f"@{file}", "x=1")]
    with file.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        bodies.append(tenantry("get", "/acme/", "-d", "-").out)
    missing = tenantry("get", "/acme/", "--data", f"@{tmp_path}/none")

    ends = [body.partition("\n\n")[2] for body in bodies]
    assert ["a\r\nbä\n", "x=1", "a\r\nbä\n"] == ends
    assert (2, "", 1) == (missing.code, missing.out, len(missing.err.splitlines()))


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("http://shop.test/", 201),
        ("HTTPS://Shop.test:8443?name=Ada", 201),
        ("http://www.shop.test/x?y", 308),
        ("/acme/", 404),
        ("http://other.test/", 404),
    ],
)
def test_get_accepts_a_url(
    tenantry: Tenantry, write_tenant: Callable[..., Path], url: str, status: int
) -> None:
    """A URL names the host name and the scheme of a request."""
    write_tenant("acme", HOSTS=["shop.test", "www.shop.test"])

    assert status == json.loads(tenantry("get", url, "--json").out)["status"]
