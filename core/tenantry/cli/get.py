"""`tenantry get`: one request through the real stack, in this process."""

import re
import sys

import click
from werkzeug.test import Client
from werkzeug.wrappers import Response

from tenantry.cli import PROBLEM_FOUND
from tenantry.cli.output import as_json, print_json
from tenantry.errors import TenantryError
from tenantry.host import create_host
from tenantry.middleware.containment import ResponseCutError

FIRST_ERROR_STATUS = 400

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""The name of a header or a method (RFC 9110 §5.6.2)."""

_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
"""The value of a header, as WSGI can carry it (RFC 9110 §5.5)."""


def _check_path(_: click.Context, __: click.Parameter, path: str) -> str:
    if not path.startswith("/"):
        raise click.BadParameter(f"{path!r}: a path begins with a slash, like /acme/.")
    return path


def _split_headers(
    _: click.Context, __: click.Parameter, headers: tuple[str, ...]
) -> list[tuple[str, str]]:
    pairs = [header.partition(":") for header in headers]
    for name, colon, value in pairs:
        if not colon or not _TOKEN.fullmatch(name.strip()):
            raise click.BadParameter(f"{name!r}: write it like 'Accept: text/html'.")
        if not _VALUE.fullmatch(value):
            raise click.BadParameter(f"{name!r}: a header is one line of Latin-1 text.")
    return [(name.strip(), value.strip()) for name, _, value in pairs]


@click.command("get")
@click.argument("path", callback=_check_path)
@click.option("--method", help="The method.  [default: GET, with --data POST]")
@click.option("--data", help="The body.")
@click.option("--header", "headers", multiple=True, callback=_split_headers, help="'Name: value'.")
@as_json
def command(
    path: str, method: str | None, data: str | None, headers: list[tuple[str, str]], is_json: bool
) -> None:
    """Send one request for PATH through the real stack; exit 1 if the status is 400 or above."""
    host = create_host()
    host.load()
    method = (method or ("GET" if data is None else "POST")).upper()
    try:
        with Client(host).open(path, method=method, data=data, headers=headers) as response:
            body, cut = _read(response)
            _print(response, body, is_json=is_json)
    except ResponseCutError as error:  # with the first part of the body the head is lost, too
        raise TenantryError(
            f"{path}: no answer: {error.strerror}; its log line says why."
        ) from None
    finally:
        host.close()
    if cut:
        raise TenantryError(f"{path}: the answer ends here: {cut}; its log line says why.")
    sys.exit(PROBLEM_FOUND if response.status_code >= FIRST_ERROR_STATUS else 0)


def _read(response: Response) -> tuple[bytes, str]:
    """Return the body as far as it comes, and why it ends before its end."""
    parts: list[bytes] = []
    try:
        for part in response.iter_encoded():
            parts.append(part)  # noqa: PERF402 - what has come stays, if the next one raises
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
