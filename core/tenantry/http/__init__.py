"""HTTP without a framework: problem responses, raw request heads, and per-request state.

The package `http` imports neither Flask nor gunicorn, and no package of Tenantry. The server calls
`raw_head` with the first bytes of a request. `middleware.accounting` then opens the
`RequestRecord`, and completes it when the response is closed.
"""
