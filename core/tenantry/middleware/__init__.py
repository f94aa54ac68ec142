"""The WSGI layers that a request passes, one in each file, and what they need.

`edge` and `accounting` stand around all tenants, and `host_pages` answers where no tenant does.
`app.stack` puts the other layers around each tenant's app. They know WSGI, not Flask. They may
import `tenants`, `observability` and `http`. `Host` calls `Accounting` first, for every request.
"""
