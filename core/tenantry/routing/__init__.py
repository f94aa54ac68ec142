"""Which app answers a request: prefix → mount → instance, and the builds that requests wait for.

It knows WSGI, not Flask: the host passes in the function that builds an instance. It may import
`tenants`, `observability`, `http` and the layers below. `Host` calls it first: each request goes to
`Router`, which finds its `Mount`, which answers with an `Instance`.
"""
