"""Logs: every line as one event with its facts, for people or for machines.

The modules of Tenantry log through the standard library; structlog only formats, so that lines of
Flask, of endpoints and of libraries come out in the same form. What is global here is the
root logger's handler.
"""

import io
import logging
import re
import sys
from typing import TYPE_CHECKING, Any, Literal, TextIO

import structlog
from structlog.contextvars import merge_contextvars

from tenantry.http.environ import REQUEST_CONTEXT, REQUEST_ID
from tenantry.http.request_context import RequestContext, current_request
from tenantry.observability.hiding import Config, hidden_now, set_secret_scope
from tenantry.observability.redaction import redact_credentials, replaced

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Control characters, and what ends or turns lines by Unicode."""

_OF_RECORD = frozenset({
    *vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime"
})  # fmt: skip
"""What every record has, or other handlers leave on it."""

_COMES_LATER = frozenset({"timestamp", "exception"})
"""Facts that are put to a line after those of `extra`."""

_LINES_OF_THEIR_OWN = frozenset({"stack", "exception"})
"""Facts that the renderer for people writes below the line, as they are."""

_OF_STRUCTLOG = frozenset({"_record", "_from_structlog", "exc_info"})

_OURS = frozenset({"level", "logger", "tenant", "timestamp"})
"""Facts that tell no secret, even where one is spelt like them."""


class _HostHandler(logging.StreamHandler[Any]):
    """Our handler on the root logger; its type is how a second call finds it."""


def configure_logging(form: Literal["console", "json"], level: str) -> None:
    """Send every log line of this process to stderr; replaces what an earlier call set up."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # structlog's own choice shows every frame's local variables: keys, bodies, passwords.
            exception_formatter=_plain_traceback,
        )
    )
    processors: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        merge_contextvars,
        _of_request,
        _with_extras,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        processors += [_with_traceback, _without_credentials]
    else:
        processors += [_without_credentials, _printable]
    handler = _HostHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=processors,
        )
    )
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _HostHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def _of_request(
    _logger: object, _method: str, facts: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Say whose request a line belongs to."""
    context = current_request.get()
    if context is not None:
        facts["tenant"], facts["request_id"] = context.tenant, context.request_id
        if context.trace_id:
            facts["trace_id"] = context.trace_id
    return facts


def _with_extras(
    _logger: object, _method: str, facts: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Add what was logged as `extra`; what the line says already is not changed by it.

    A library, or an app that hands on what a client sent, would name another tenant.
    """
    for key, value in vars(facts["_record"]).items():
        if key in _OF_RECORD:
            continue
        name = _escaped(str(key))
        if name in facts or name in _COMES_LATER:
            if isinstance(value, str) and facts.get(name) == value:
                continue
            name = f"extra_{name}"
        facts[name] = value
    return facts


def _plain_traceback(to: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    hidden = replaced(text.getvalue(), hidden_now(exc_info))
    to.write("\n" + _indented(redact_credentials(hidden)))


def _with_traceback(
    logger: object, method: str, facts: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Format the exception, without the secrets of whose request or build it was."""
    exc_info = facts.get("exc_info")
    facts = structlog.processors.format_exc_info(logger, method, facts)
    if isinstance(facts.get("exception"), str):
        facts["exception"] = replaced(facts["exception"], hidden_now(exc_info))
    return facts


def _without_credentials(
    _logger: object, _method: str, facts: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Mask the secrets of whose line it is, and of anybody's what stands in a URL, for one."""
    hidden = hidden_now(facts.get("exc_info"))
    for key, value in facts.items():
        if isinstance(value, str):
            is_ours = not hidden or key in _OURS
            facts[key] = redact_credentials(value if is_ours else replaced(value, hidden))
        elif hidden and key[:1] != "_" and key != "exc_info":
            facts[key] = _shown(value, hidden)
    return facts


def _shown(value: object, hidden: list[str]) -> object:
    """Return a value as it is, or its `repr` without the secrets that are in it."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - it may be of any class of an endpoint
        return f"<{type(value).__name__}>"
    masked = redact_credentials(replaced(text, hidden))
    return value if masked == text else masked


def _printable(
    _logger: object, _method: str, facts: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Escape control characters: a path that a client sends must not forge lines or colours."""
    for key, value in facts.items():
        if key in _LINES_OF_THEIR_OWN:
            facts[key] = _indented(str(value))
        elif isinstance(value, str):
            facts[key] = _escaped(value)
        elif key not in _OF_STRUCTLOG and _CONTROL.search(text := repr(value)):
            facts[key] = _escaped(text)
    return facts


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def _indented(text: str) -> str:
    """Return a text of several lines so that none can be taken for a line of the log."""
    return "\n".join(f"  {_escaped(line)}" for line in text.strip("\n").split("\n"))


class LogContext:
    """WSGI middleware: every line that is logged during a request names tenant and request."""

    __slots__ = ("_app", "_config", "_tenant")

    def __init__(self, app: "WSGIApplication", tenant: str, config: Config | None = None) -> None:
        self._app = app
        self._tenant = tenant
        self._config = config  # whose secrets no line may have

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> "Iterable[bytes]":
        """Note both in the request's own context, which `Containment` made and drops."""
        context = environ.get(REQUEST_CONTEXT) or RequestContext()
        context.tenant, context.request_id = self._tenant, environ.get(REQUEST_ID, "")
        current_request.set(context)
        if self._config is not None:
            set_secret_scope(self._config)
        return self._app(environ, start_response)
