"""Checks a set of built tenants for leaks: what they share, and what exposes one to strangers.

`tenantry audit` calls `prepare_for_audit` on each tenant, builds it, and passes it to `audit`.
May import the packages below it (`middleware`, `tenants`, `endpoints`, …), but no sibling such as
`app` or `server`, and not `host`: the caller passes the host as a WSGI application.
"""
