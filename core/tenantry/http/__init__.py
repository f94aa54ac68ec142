"""HTTP without a framework: problem responses, raw request heads, and per-request state.

It knows WSGI, but neither Flask nor gunicorn, and imports no other package of Tenantry. The server
calls it first: `raw_head` looks at the first bytes of a request. `middleware.accounting` then opens
the `RequestRecord`, and completes it when the response is closed.
"""
