"""Endpoints: the features that a tenant enables by name, and how one is loaded for one app.

The sub-packages are the endpoints that come with Tenantry; `README.md` describes how to write
another one. This package imports `database`, `observability`, `files` and what lies below them.
Its sub-packages use Tenantry's public names and never import each other. `tenants` calls
`loading.find_endpoint` first, to check `BLUEPRINTS`; then `app.factory` loads the endpoints of an
app.
"""
