"""The WSGI layers that a request passes, with one layer in each module.

`edge` and `accounting` wrap all tenants, and `host_pages` answers requests for no tenant.
`app.stack` puts the remaining layers around each tenant's app. The layers know WSGI, not Flask. The
package `middleware` may import `tenants`, `observability` and `http`. `Host` calls `Accounting`
first, for every request.
"""
