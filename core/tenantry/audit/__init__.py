"""Checks built tenants for shared objects, keys and folders, and for unsafe settings.

`tenantry audit` calls `prepare_for_audit` on each tenant, builds each tenant's app, and passes the
built tenants to `audit`. The `audit` package may import `middleware`, `tenants`, `endpoints` and
lower packages, but not `app`, `server` or `host`. The caller of `audit` passes the host as a WSGI
application.
"""
