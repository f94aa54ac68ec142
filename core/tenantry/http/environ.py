"""Keys that Tenantry adds to the WSGI environ."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

REQUEST_ID = "tenantry.request_id"
"""The ID of the request. `Edge` sets it before anything can answer."""

PATH_TAIL = "tenantry.path_tail"
"""The part of the path after the segments that can be a prefix. A mount appends it again."""

TENANT = "tenantry.tenant"
"""The name of the tenant. `Mount` sets it; a request that reaches no mount has none."""

REQUEST_RECORD = "tenantry.request_record"
"""The `RequestRecord` of the request. `Accounting` sets it."""

REFUSED = "tenantry.refused"
"""Present once the host has answered instead of the app."""

SENT_STATUS = "tenantry.sent_status"
"""The status line that the client has already received: at the deadline, the server sends a 504
itself, and the status of the app's later response no longer matters."""

CLIENT = "tenantry.client"
"""The name of the client as in `CLIENTS`, or `oidc:SUB` for a client with a token."""

ENDPOINT = "tenantry.endpoint"
"""The Flask endpoint that the request matched. Set when the response starts, because Flask removes
its request from the environ before the body is closed."""

_WERKZEUG_REQUEST = "werkzeug.request"


def matched_endpoint(environ: "WSGIEnvironment") -> str:
    """Return the Flask endpoint that a request in progress matched; empty if none.

    Werkzeug keeps its `Request` in the environ, and Flask sets its `url_rule`. This reads plain
    data, so that no code of the app runs.
    """
    request = environ.get(_WERKZEUG_REQUEST)
    rule = getattr(request, "__dict__", {}).get("url_rule")
    return str(getattr(rule, "endpoint", ""))
