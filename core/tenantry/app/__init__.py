"""Builds a tenant's Flask app and wraps it in WSGI layers.

`factory` builds the app: a new one, or the existing application that `APP` names. `tenant_build`
makes each Flask object that the tenant's code creates the tenant's. `stack` adds the layers, and
`process_resources` holds what the tenants of a process share. This package may import every package
of a lower layer, but none of its own layer. `Host` calls `build_stack` for each build of a tenant.
Commands call the factory directly.
"""
