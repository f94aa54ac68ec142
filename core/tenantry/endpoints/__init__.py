"""Loads endpoints, which are the features that a tenant enables by name, and applications.

Each sub-package of `endpoints` is an endpoint that comes with Tenantry. The file `README.md`
describes how to write an endpoint. The modules of this package import `database`, `observability`,
`files` and lower packages. Endpoints use only Tenantry's public names, and never import each other.
First, the package `tenants` calls `find_endpoint` to check `BLUEPRINTS`. Later, `app.factory` loads
the endpoints of each app, and the existing application that `APP` names.
"""
