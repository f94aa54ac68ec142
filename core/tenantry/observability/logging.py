"""Logging setup: every log line is an event with named fields, as text for people or as JSON.

Tenantry logs through the standard library. structlog formats the log records, so that lines from
Flask, endpoints and libraries have the same form. The only global state is the root logger's
handler.
"""

import io
import logging
import re
import sys
from typing import Any, Literal, TextIO

import structlog
from structlog.contextvars import merge_contextvars
from structlog.typing import EventDict

from tenantry.http.request_record import current_request
from tenantry.observability.log_writer import STDERR
from tenantry.observability.redaction import (
    redact,
    redact_credentials,
    redact_in_scope,
    secrets_in_scope,
)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Control characters, and Unicode characters that end a line or change the text direction."""

_RECORD_ATTRIBUTES = frozenset({
    *vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime"
})  # fmt: skip
"""Names of the attributes that every `LogRecord` has, or that other formatters add."""

_ADDED_LATER = frozenset({"timestamp", "exception"})
"""Names of fields that `extra` must not set, because later processors add these fields."""

_MULTILINE = frozenset({"stack", "exception"})
"""Names of fields that `ConsoleRenderer` writes unchanged after the log line."""

_STRUCTLOG = frozenset({"_record", "_from_structlog", "exc_info"})

_NEVER_SECRET = frozenset({"level", "logger", "tenant", "timestamp"})
"""Names of fields that redaction never changes, even if a secret has the same text, because the
host sets them."""


class _HostHandler(logging.StreamHandler[Any]):
    """The host's handler on the root logger, which a repeated setup recognizes by its type.

    In a process that serves, the thread of `STDERR` writes the lines.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if not STDERR.is_running:
            super().emit(record)
            return
        try:
            STDERR.put(f"{self.format(record)}\n")
        except Exception:  # noqa: BLE001 - `logging` reports errors of a handler
            self.handleError(record)

    def flush(self) -> None:
        """Write all lines so far. `logging` calls `flush` when the process ends."""
        super().flush()
        if STDERR.is_running:
            STDERR.flush()


def configure_logging(log_format: Literal["console", "json"], level: str) -> None:
    """Send every log line of this process to stderr, and replace an earlier setup."""
    processors: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        merge_contextvars,
        _add_request,
        _add_extra,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor
    if log_format == "json":
        processors += [_add_traceback, _redact_facts]
        renderer = structlog.processors.JSONRenderer()
    else:
        processors += [_redact_facts, _escape_facts]
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # The default formatter can show local variables, which can contain keys and passwords.
            exception_formatter=_write_traceback,
        )
    handler = _HostHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=processors,
        )
    )
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _HostHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def _add_request(_logger: object, _method: str, facts: EventDict) -> EventDict:
    """Add the tenant, the request ID and the trace of the current request."""
    record = current_request.get()
    if record is not None:
        facts["tenant"], facts["request_id"] = record.tenant, record.request_id
        if record.trace_id:
            facts["trace_id"] = record.trace_id
    return facts


def _add_extra(_logger: object, _method: str, facts: EventDict) -> EventDict:
    """Add the fields from `extra`; rename a field that the line already has to `extra_<name>`.

    Otherwise, an app or a library that logs a client's data could change the field `tenant`.
    """
    for key, value in vars(facts["_record"]).items():
        if key in _RECORD_ATTRIBUTES:
            continue
        name = _escape(str(key))
        if name in facts or name in _ADDED_LATER:
            if isinstance(value, str) and facts.get(name) == value:
                continue
            name = f"extra_{name}"
        facts[name] = value
    return facts


def _write_traceback(stream: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    redacted = redact_in_scope(text.getvalue(), exc_info)
    stream.write("\n" + _indent(redact_credentials(redacted)))


def _add_traceback(logger: object, method: str, facts: EventDict) -> EventDict:
    exc_info = facts.get("exc_info")
    facts = structlog.processors.format_exc_info(logger, method, facts)
    if isinstance(facts.get("exception"), str):
        facts["exception"] = redact_in_scope(facts["exception"], exc_info)
    return facts


def _redact_facts(_logger: object, _method: str, facts: EventDict) -> EventDict:
    """Redact the secrets in scope, and texts that look like credentials."""
    secrets = secrets_in_scope(facts.get("exc_info"))
    for key, value in facts.items():
        if isinstance(value, str):
            text = value if key in _NEVER_SECRET else redact(value, secrets)
            facts[key] = redact_credentials(text)
        elif secrets and key not in _STRUCTLOG:
            facts[key] = _redact_object(value, secrets)
    return facts


def _redact_object(value: object, secrets: list[str]) -> object:
    """Return a value unchanged, or its redacted `repr` if the value contains a secret."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - an endpoint's class can raise anything
        return f"<{type(value).__name__}>"
    redacted = redact_credentials(redact(text, secrets))
    return value if redacted == text else redacted


def _escape_facts(_logger: object, _method: str, facts: EventDict) -> EventDict:
    """Escape control characters, so that a path from a client cannot forge log lines or colors."""
    for key, value in facts.items():
        if key in _MULTILINE:
            facts[key] = _indent(str(value))
        elif isinstance(value, str):
            facts[key] = _escape(value)
        elif key not in _STRUCTLOG and _CONTROL.search(text := repr(value)):
            facts[key] = _escape(text)
    return facts


def _escape(text: str) -> str:
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def _indent(text: str) -> str:
    """Indent each line, so that no line of a traceback looks like a log line."""
    return "\n".join(f"  {_escape(line)}" for line in text.strip("\n").split("\n"))
