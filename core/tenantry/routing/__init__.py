"""Routing: finds the mount for a request's URL prefix, and builds an instance on first use.

The package `routing` does not depend on Flask, because the host passes in the function that builds
an instance. The package may import `tenants`, `observability`, `http` and lower layers. `Host`
passes each request to `Router`. The router finds the `Mount`, which answers with its `Instance`.
"""
