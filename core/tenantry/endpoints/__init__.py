"""Loads endpoints, the features that a tenant enables by name, and contains two of them.

Each sub-package is an endpoint that comes with Tenantry. The README describes how to write an
endpoint. The modules of this package import `database`, `observability`, `files` and lower
packages. The sub-packages use only Tenantry's public names, and never import each other. The first
caller is `tenants`, which uses `find_endpoint` to check `BLUEPRINTS`. Later, `app.factory` loads
the endpoints of each app.
"""
