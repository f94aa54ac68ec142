"""The WSGI layers that a request passes through, one layer per module.

`edge` and `accounting` wrap all tenants, and `host_pages` answers requests that belong to no
tenant. `app.stack` wraps each tenant's app in the remaining layers. `head_checks` runs the head
checks, one check per module: `trusted_hosts`, `authentication`, `rate_limit` and `body_limit`. The
layers do not depend on Flask. The package `middleware` may import `tenants`, `observability` and
`http`. Every request enters the package through `Accounting`, which `Host` calls.
"""
