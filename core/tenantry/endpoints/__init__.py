"""Endpoints: the features that a tenant enables by name, and the loader of endpoints for an app.

Each sub-package of `endpoints` is an endpoint that comes with Tenantry; `README.md` describes how
to write an endpoint. `endpoints` imports `database`, `observability`, `files` and the packages that
those packages may import. The sub-packages use only Tenantry's public names and never import each
other. `tenants` is the first caller of `endpoints`: `loading.find_endpoint` checks `BLUEPRINTS`.
Then `app.factory` loads the endpoints of an app.
"""
