"""HTTP without a framework: problem responses, raw request heads, and per-request state.

The package `http` imports neither Flask nor gunicorn, and no package of Tenantry. The server calls
`raw_head` with the first bytes of a request. `middleware.accounting` opens the `RequestRecord` of a
request, and completes the record at the close of the response.
"""
