"""`tenantry get`: sends one request to a tenant, without a server."""

import re
import sys

import click
from werkzeug.test import Client
from werkzeug.wrappers import Response

from tenantry.cli import PROBLEM_FOUND
from tenantry.cli.inspecting import leaving_no_empty_folder
from tenantry.cli.output import examples, json_option, print_json
from tenantry.errors import TenantryError
from tenantry.host import create_host
from tenantry.http.response_close import ResponseCutError
from tenantry.settings import HostSettings, read_settings

FIRST_ERROR_STATUS = 400

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""Pattern of an HTTP header name (RFC 9110 §5.6.2)."""

_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
"""Pattern of an HTTP header value in Latin-1, the encoding of WSGI (RFC 9110 §5.5)."""


_URL = re.compile(r"(https?://[^/?#@]+)((?:[/?].*)?)", re.IGNORECASE)


def _split_target(_: click.Context, __: click.Parameter, target: str) -> tuple[str, str]:
    """Return the origin, which is empty without a host name, and the path of a request."""
    if target.startswith("/"):
        return "", target
    match = _URL.fullmatch(target)
    if match is None:
        raise click.BadParameter(
            f"{target!r}: begin with a slash, as in /acme/, or with http:// and a host name."
        )
    return match[1], match[2] if match[2].startswith("/") else f"/{match[2]}"


def _read_data(_: click.Context, __: click.Parameter, text: str | None) -> bytes | None:
    """Return the request body: a text, or the unchanged bytes of a file."""
    if text is None:
        return None
    if not text.startswith("@") and text != "-":
        return text.encode("utf-8", "surrogateescape")
    try:
        with click.open_file(text.removeprefix("@"), "rb") as file:
            return bytes(file.read())
    except OSError as error:
        raise click.BadParameter(f"{text!r}: cannot be read: {error.strerror}.") from error


def _split_headers(
    _: click.Context, __: click.Parameter, headers: tuple[str, ...]
) -> list[tuple[str, str]]:
    pairs = [header.partition(":") for header in headers]
    for name, colon, value in pairs:
        if not colon or not _TOKEN.fullmatch(name.strip()):
            raise click.BadParameter(f"{name!r}: write the header as in 'Accept: text/html'.")
        if not _VALUE.fullmatch(value):
            raise click.BadParameter(f"{name!r}: use one line of Latin-1 text as the header value.")
    return [(name.strip(), value.strip()) for name, _, value in pairs]


@click.command(
    "get",
    epilog=examples(
        "tenantry get /shop/",
        "tenantry get http://shop.example.org/",
        "tenantry get /shop/ --header 'Accept: text/html'",
        "tenantry get /shop/images/ --data @photo.png",
    ),
)
@click.argument("target", metavar="PATH", callback=_split_target)
@click.option(
    "--method", "-X", metavar="M", help="HTTP method.  [default: GET, or POST with --data]"
)
@click.option(
    "--data", "-d", metavar="TEXT", callback=_read_data,
    help="Request body: a text, @FILE for the bytes of a file, or @- for standard input.  "
    "[default: none]",
)  # fmt: skip
@click.option(
    "--header", "-H", "headers", metavar="HEADER", multiple=True, callback=_split_headers,
    help="Request header, as 'Name: value'. Repeatable.",
)  # fmt: skip
@json_option
def command(
    target: tuple[str, str],
    method: str | None,
    data: bytes | None,
    headers: list[tuple[str, str]],
    is_json: bool,
) -> None:
    """Send one request without a server.

    Send a request for PATH through all middleware to the tenant's app, inside the process of this
    command. For a tenant with host names of its own, PATH is a URL. Print the status, the headers
    and the body of the response. The exit code is 1 if the status is 400 or higher.
    """
    settings = read_settings()
    with leaving_no_empty_folder(settings):
        status = _send(settings, target, method, data, headers, is_json=is_json)
    sys.exit(PROBLEM_FOUND if status >= FIRST_ERROR_STATUS else 0)


def _send(
    settings: HostSettings,
    target: tuple[str, str],
    method: str | None,
    data: bytes | None,
    headers: list[tuple[str, str]],
    *,
    is_json: bool,
) -> int:
    """Send the request, print the response, and return its status."""
    origin, path = target
    host = create_host(settings)
    host.load()
    method = (method or ("GET" if data is None else "POST")).upper()
    try:
        with Client(host).open(
            path, base_url=origin or None, method=method, data=data, headers=headers
        ) as response:
            body, cut = _read(response)
            _print(response, body, is_json=is_json)
    except ResponseCutError as error:  # the app failed before the first part of the body
        raise TenantryError(
            f"{path}: no response: {error.strerror}; for the reason, see the log lines above."
        ) from None
    finally:
        host.close()
    if cut:
        raise TenantryError(
            f"{path}: the response is incomplete: {cut}; for the reason, see the log lines above."
        )
    return response.status_code


def _read(response: Response) -> tuple[bytes, str]:
    """Return the body of a response, and the reason why the body is incomplete, or ""."""
    parts: list[bytes] = []
    try:
        for part in response.iter_encoded():
            parts.append(part)  # noqa: PERF402 - an exception must not lose earlier parts
    except ResponseCutError as error:
        return b"".join(parts), str(error.strerror)
    return b"".join(parts), ""


def _print(response: Response, body: bytes, *, is_json: bool) -> None:
    if is_json:
        text = body.decode("utf-8", "replace")
        headers = list(response.headers)
        print_json({"status": response.status_code, "headers": headers, "body": text})
        return
    click.echo(f"HTTP/1.1 {response.status}")
    for name, value in response.headers:
        click.echo(f"{name}: {value}")
    click.echo()
    click.echo(body, nl=False)
