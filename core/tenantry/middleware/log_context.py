"""Log context: adds the tenant and the request ID to every log line of a request."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tenantry.http.environ import REQUEST_ID, REQUEST_RECORD
from tenantry.http.request_record import RequestRecord, current_request
from tenantry.observability.redaction import Config, set_secret_scope

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class LogContext:
    """WSGI middleware that adds the tenant and the request ID to a request's log lines.

    Args:
        app: the wrapped application.
        tenant: the name of the tenant.
        config: the app's configuration, whose secrets are redacted in the request's log lines.
    """

    __slots__ = ("_app", "_config", "_tenant")

    def __init__(self, app: "WSGIApplication", tenant: str, config: Config | None = None) -> None:
        self._app = app
        self._tenant = tenant
        self._config = config

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> "Iterable[bytes]":
        """Set the context variables of the request, and call the app."""
        record = environ.get(REQUEST_RECORD) or RequestRecord()
        record.tenant, record.request_id = self._tenant, environ.get(REQUEST_ID, "")
        current_request.set(record)
        if self._config is not None:
            set_secret_scope(self._config)
        return self._app(environ, start_response)
