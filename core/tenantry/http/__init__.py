"""Handles HTTP without a framework: request heads, error responses, and the state of a request.

This package imports neither Flask nor gunicorn. Of Tenantry's own modules, this package imports
only `grammar`. The server reads each request with `request_head`. `middleware.in_flight` creates a
`RequestRecord` for each request, and `middleware.accounting` completes the record when the response
is closed.
"""
