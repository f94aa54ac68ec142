"""Finds out whether an existing Flask application can be a tenant.

The command `tenantry adopt` calls `examine`. Child processes build the application as two tenants,
because its code may end or hang its process. This package may import `app`, `audit` and lower
packages, but not `host`. Therefore, the caller says how to run the audit of the two tenants.
"""
