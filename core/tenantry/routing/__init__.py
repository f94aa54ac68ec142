"""Routing of requests from a URL prefix to a mount and an instance, and first builds.

The package `routing` knows WSGI, not Flask, because the host passes in the function that builds an
instance. The package `routing` may import `tenants`, `observability`, `http` and lower layers.
`Host` passes each request to `Router`, which finds the `Mount`, which answers with an `Instance`.
"""
