"""The access log: one line for each request that has ended.

`AccessLog` formats its lines itself, because `logging` and structlog take eight times as long. In a
process that serves, the thread of `STDERR` formats and writes the lines, so that no request waits.

- A line contains the path, but not the query or the headers, because queries contain tokens, search
  terms and addresses.
- The field `client` is a name from `CLIENTS`, or `oidc:SUB`, and never a key.
- A line contains only printable ASCII characters. All other characters are escaped as in JSON.
- A line contains at most 1 KiB of the path and 1 KiB of the client's name.
- The field `address` is the client's address before the app can change the WSGI environ.

A request for the host's own pages is logged only if it fails, because probes request these pages
all day.
"""

import re
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from time import time_ns
from typing import Literal

from tenantry.http.request_record import RequestRecord
from tenantry.observability.log_writer import MAX_QUEUED, STDERR, LogWriter

EVENT = "request.ended"
LOGGER = "tenantry.request"

_OWN_PAGES = "/-/"
_FIRST_ERROR_STATUS = 400
# Printable ASCII except spaces, quotes and equals signs.
_is_plain = re.compile(r"[!#-<>-~]*").fullmatch

_MAX_CHARS = 1024
"""Maximum length of an escaped path or client's name. In a pipe, a log line longer than `PIPE_BUF`
(4 KiB) could be mixed with lines of other processes."""

_MAX_UNCHECKED_CHARS = 80
"""Maximum length of a text that always fits in `_MAX_CHARS`, because escaping turns a character
into at most 12 characters."""

_MAX_ADDRESS_CHARS = 45
"""Maximum length of an address: an IPv6 address with an embedded IPv4 address."""


class AccessLog:
    """Writes the lines of the access log. Thread-safe.

    Args:
        log_format: the format of all log lines.
        writer: writes the lines.
    """

    def __init__(self, log_format: Literal["console", "json"], writer: LogWriter = STDERR) -> None:
        self._render = _render_json if log_format == "json" else _render_console
        self._writer = writer
        self._second = 0, ""  # the last second and its text, replaced together

    def __call__(self, record: RequestRecord) -> None:
        """Queue the log line of an ended request, whose record no longer changes."""
        if (
            not record.tenant
            and record.path.startswith(_OWN_PAGES)
            and record.status < _FIRST_ERROR_STATUS
        ):
            return
        writer = self._writer
        # `LogWriter.put` would be a second call, and would wake the thread for each line.
        if len(writer.queue) < MAX_QUEUED:
            writer.queue.append((self._line, record, time_ns()))
        else:
            writer.dropped_total += 1
        if not writer.is_awake:
            writer.wake()

    def _line(self, record: RequestRecord, ended_ns: int) -> str:
        path, client = record.path, record.client
        if not path.isascii():
            path = path.encode("latin-1", "replace").decode("utf-8", "replace")
        if len(path) + len(client) > _MAX_UNCHECKED_CHARS:
            path, client = _truncate(path), _truncate(client)
        second, rest_ns = divmod(ended_ns, 1_000_000_000)
        last_second, text = self._second
        if second != last_second:
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second, text
        return self._render(record, f"{text}.{rest_ns // 1000:06d}Z", path, client)


def _render_json(record: RequestRecord, timestamp: str, path: str, client: str) -> str:
    trace = f', "trace_id": "{record.trace_id}"' if record.trace_id else ""
    client_fact = f', "client": {quoted(client)}' if client else ""
    return (
        f'{{"tenant": "{record.tenant}", "request_id": "{record.request_id}", '
        f'"address": {quoted(record.address[:_MAX_ADDRESS_CHARS])}, '
        f'"endpoint": {quoted(record.endpoint)}, "method": {quoted(record.method)}, '
        f'"path": {quoted(path)}, "status": {record.status}, '
        f'"bytes_in": {record.bytes_in}, "bytes_out": {record.bytes_out}, '
        f'"wall_ms": {record.wall_ns / 1e6:.3f}, "processor_ms": {record.processor_ns / 1e6:.3f}, '
        f'"database_ms": {record.database_ns / 1e6:.3f}, "queries": {record.queries}'
        f'{client_fact}{trace}, "event": "{EVENT}", "level": "info", "logger": "{LOGGER}", '
        f'"timestamp": "{timestamp}"}}\n'
    )


_CONSOLE_EVENT = f"[info     ] {EVENT:<30} [{LOGGER}]"


def _render_console(record: RequestRecord, timestamp: str, path: str, client: str) -> str:
    trace = f" trace_id={record.trace_id}" if record.trace_id else ""
    client_fact = f" client={_quote(client)}" if client else ""
    address = record.address[:_MAX_ADDRESS_CHARS]
    return (
        f"{timestamp} {_CONSOLE_EVENT} method={_quote(record.method)} "
        f"path={path if _is_plain(path) else quoted(path)} status={record.status} "
        f"tenant={record.tenant} address={address if _is_plain(address) else quoted(address)} "
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


@lru_cache(maxsize=256)  # the same methods, endpoints and clients occur again and again
def _quote(text: str) -> str:
    """Return a text unchanged, or quoted if it has spaces, quotes or equals signs."""
    return text if _is_plain(text) else quoted(text)
