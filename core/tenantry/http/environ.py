"""Keys that Tenantry adds to the WSGI environ."""

REQUEST_ID = "tenantry.request_id"
"""The ID of the request. `Edge` sets it before anything can answer."""

TENANT = "tenantry.tenant"
"""The name of the tenant. `Mount` sets it; a request that reaches no mount has none."""

REQUEST_CONTEXT = "tenantry.request_context"
"""The `RequestContext` of the request."""

REFUSED = "tenantry.refused"
"""Present once the host has answered in place of the app."""

SENT_STATUS = "tenantry.sent_status"
"""The status line that the client has already received: at the deadline, the server sends a 504
itself, and the status of the app's later response no longer matters."""

CLIENT = "tenantry.client"
"""The name of the client as in `CLIENTS`, or `oidc:SUB` for a client with a token."""

ENDPOINT = "tenantry.endpoint"
"""The name of the Flask endpoint that the request matched."""
