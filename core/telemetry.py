"""Logs: every line as one event with its facts, for people or for machines.

The modules of Tenantry log through the standard library; structlog only formats, so that lines of
Flask, of endpoints and of libraries come out in the same form. This file owns the process's only
global state: the root logger's handler.
"""

import logging
import sys
from typing import TYPE_CHECKING, Any, Literal

import structlog
from structlog.contextvars import bind_contextvars, merge_contextvars

from core.problem import REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class _HostHandler(logging.StreamHandler[Any]):
    """Our handler on the root logger; its type is how a second call finds it."""


def configure_logging(form: Literal["console", "json"], level: str) -> None:
    """Send every log line of this process to stderr; replaces what an earlier call set up."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    processors: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        merge_contextvars,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        processors.append(structlog.processors.format_exc_info)
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


class LogContext:
    """WSGI middleware: every line that is logged during a request names tenant and request."""

    def __init__(self, app: "WSGIApplication", tenant: str) -> None:
        self._app = app
        self._tenant = tenant

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> "Iterable[bytes]":
        """Bind both in the request's own context, which `Containment` made and drops."""
        bind_contextvars(tenant=self._tenant, request_id=environ.get(REQUEST_ID, ""))
        return self._app(environ, start_response)
