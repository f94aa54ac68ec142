"""Checks built tenants for shared objects, keys and folders, and for unsafe settings.

The command `tenantry audit` calls `prepare_for_audit` for each tenant, builds the tenants' apps,
and passes them to the function `audit`. This package may import `middleware`, `tenants`,
`endpoints` and lower packages, but not `app`, `server` or `host`. Therefore, the caller passes the
host as a WSGI application.
"""
