"""Handles HTTP without a framework: error responses, raw request heads, and request state.

This package imports neither Flask nor gunicorn, nor any package of Tenantry. The server passes the
first bytes of a request to `raw_head`. `middleware.accounting` creates a `RequestRecord` for each
request, and completes the record when the response is closed.
"""
