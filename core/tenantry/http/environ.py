"""Defines the keys that Tenantry adds to the WSGI environ of a request."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

REQUEST_ID = "tenantry.request_id"
"""The ID of the request. `Edge` sets the request ID before any layer can answer."""

TENANT = "tenantry.tenant"
"""The name of the tenant, set by `Router`. A request that reaches no mount has no tenant."""

MATCHED_PAIR = "tenantry.matched_pair"
"""The pair of a host name and a prefix that the request matched, set by `Router`."""

REQUEST_RECORD = "tenantry.request_record"
"""The `RequestRecord` of the request."""

REFUSED = "tenantry.refused"
"""A key that exists if the host answered the request instead of the app."""

HEAD_CHECKED_FOR = "tenantry.head_checked_for"
"""The name of the tenant whose `HeadChecks` have accepted or refused the request.

With this key, Flask does not check the host name again, because Werkzeug's own check rejects
`ACME.test`, `acme.test.`, `web_1` and `[::1]`.
"""

HEAD_REFUSAL = "tenantry.head_refusal"
"""The `Refusal` of a request that `HeadChecks` have refused; absent if accepted."""

RATE_HEADERS = "tenantry.rate_headers"
"""The `RateLimit` headers of the response, set by `RateLimit` for a counted request."""

CLIENT = "tenantry.client"
"""The name of the client in `CLIENTS`, or `oidc:SUB` for a client with a token."""

ENDPOINT = "tenantry.endpoint"
"""The Flask endpoint that the request matched.

`Containment` sets the endpoint at the start of the response, because Flask removes its request from
the environ before the body is closed.
"""

TARGET = "tenantry.target"
"""The WSGI app that answers the request: a mount, a page of the host or a problem response. `Edge`
sets the key once per request."""

CONNECTION = "tenantry.connection"
"""The client's connection, a `ClientConnection`, if the server provides it."""

IS_FOR_OPERATORS = "tenantry.is_for_operators"
"""Key that is present in a request on the operators' listener."""

MAX_WAIT = "tenantry.max_wait_s"
"""Seconds for which the request may wait for the tenant's instance; absent if one exists."""

START_WAIT_S = 20.0
"""Maximum seconds for which requests wait until their tenant can answer: for the validation of
tenant files, and for the build of the instance. Validating a tenant file takes 1 ms or, if the file
hangs, up to 6 s. A build usually takes 10 to 125 ms. A build with a database migration took 12 s on
an overloaded machine."""

_WERKZEUG_REQUEST = "werkzeug.request"


def matched_endpoint(environ: "WSGIEnvironment") -> str:
    """Return the Flask endpoint of a running request, or an empty string.

    Werkzeug stores its `Request` in the environ, and Flask sets the attribute `url_rule` of the
    `Request`. This function reads plain data only, so it runs no code of the app.
    """
    request = environ.get(_WERKZEUG_REQUEST)
    rule = getattr(request, "__dict__", {}).get("url_rule")
    return str(getattr(rule, "endpoint", ""))
