"""The access log: one line for each request that has ended.

`AccessLog` formats its lines itself, because `logging` and structlog take eight times as long.

- A line contains the path, but not the query or the headers, because queries contain tokens, search
  terms and addresses.
- The field `client` is a name from `CLIENTS`, or `oidc:SUB`, and never a key.
- A line contains only printable ASCII characters. All other characters are escaped as in JSON.
- A line contains at most 1 KiB of the path and 1 KiB of the client's name.

A request for the host's own pages is logged only if it fails, because probes request these pages
all day.
"""

import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quoted
from typing import Literal

from tenantry.http.request_record import RequestRecord

EVENT = "request.ended"
LOGGER = "tenantry.request"

_OWN_PAGES = "/-/"
_FIRST_ERROR_STATUS = 400
_STDERR = 2
_PLAIN = re.compile(r"[!#-<>-~]*")  # printable ASCII except spaces, quotes and equals signs

_MAX_CHARS = 1024
"""Maximum length of an escaped path or client's name. In a pipe, a log line longer than `PIPE_BUF`
(4 KiB) could be mixed with lines of other processes."""

_MAX_UNCHECKED_CHARS = 80
"""Maximum length of a text that always fits in `_MAX_CHARS`, because escaping turns a character
into at most 12 characters."""


def write_stderr(line: str) -> None:
    """Write a line to stderr in one piece."""
    try:  # noqa: SIM105 - `suppress` takes as long as the rest of this function
        os.write(_STDERR, line.encode("ascii"))
    except OSError:
        pass  # no process reads stderr, or the disk is full; the request must not fail


class AccessLog:
    """Writes the lines of the access log. Thread-safe.

    Args:
        log_format: the format of all log lines.
        write: writes one log line, which ends with a newline.
    """

    def __init__(
        self, log_format: Literal["console", "json"], write: Callable[[str], object] = write_stderr
    ) -> None:
        self._render = _render_json if log_format == "json" else _render_console
        self._write = write
        self._second = 0, ""  # the last second and its text, replaced together

    def __call__(self, record: RequestRecord) -> None:
        """Write the log line of an ended request."""
        path, client = record.path, record.client
        if (
            not record.tenant
            and path.startswith(_OWN_PAGES)
            and record.status < _FIRST_ERROR_STATUS
        ):
            return
        if not path.isascii():
            path = path.encode("latin-1", "replace").decode("utf-8", "replace")
        if len(path) + len(client) > _MAX_UNCHECKED_CHARS:
            path, client = _truncate(path), _truncate(client)
        self._write(self._render(record, self._timestamp(), path, client))

    def _timestamp(self) -> str:
        second, rest_ns = divmod(time.time_ns(), 1_000_000_000)
        last_second, text = self._second
        if second != last_second:
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second, text
        return f"{text}.{rest_ns // 1000:06d}Z"


def _render_json(record: RequestRecord, timestamp: str, path: str, client: str) -> str:
    trace = f', "trace_id": "{record.trace_id}"' if record.trace_id else ""
    client_fact = f', "client": {quoted(client)}' if client else ""
    return (
        f'{{"tenant": "{record.tenant}", "request_id": "{record.request_id}", '
        f'"endpoint": {quoted(record.endpoint)}, "method": {quoted(record.method)}, '
        f'"path": {quoted(path)}, "status": {record.status}, '
        f'"bytes_in": {record.bytes_in}, "bytes_out": {record.bytes_out}, '
        f'"wall_ms": {record.wall_ns / 1e6:.3f}, "processor_ms": {record.processor_ns / 1e6:.3f}, '
        f'"database_ms": {record.database_ns / 1e6:.3f}, "queries": {record.queries}'
        f'{client_fact}{trace}, "event": "{EVENT}", "level": "info", "logger": "{LOGGER}", '
        f'"timestamp": "{timestamp}"}}\n'
    )


def _render_console(record: RequestRecord, timestamp: str, path: str, client: str) -> str:
    trace = f" trace_id={record.trace_id}" if record.trace_id else ""
    client_fact = f" client={_quote(client)}" if client else ""
    return (
        f"{timestamp} [info     ] {EVENT:<30} [{LOGGER}] method={_quote(record.method)} "
        f"path={_quote(path)} status={record.status} tenant={record.tenant} "
        f"endpoint={_quote(record.endpoint)} request_id={record.request_id} "
        f"bytes_in={record.bytes_in} bytes_out={record.bytes_out} "
        f"wall_ms={record.wall_ns / 1e6:.3f} processor_ms={record.processor_ns / 1e6:.3f} "
        f"database_ms={record.database_ns / 1e6:.3f} queries={record.queries}"
        f"{client_fact}{trace}\n"
    )


def _truncate(text: str) -> str:
    """Return the text, shortened if its escaped form is too long."""
    short = text
    while (size := len(quoted(short))) > _MAX_CHARS:
        short = short[: len(short) * _MAX_CHARS // size]
    return short if short is text else f"{short}…"


def _quote(text: str) -> str:
    """Return a text unchanged, or quoted if it has spaces, quotes or equals signs."""
    return text if _PLAIN.fullmatch(text) else quoted(text)
