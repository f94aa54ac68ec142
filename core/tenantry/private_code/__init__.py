"""Gives each build of a tenant its own copy of the tenant's Python modules.

The modules of endpoint packages, and everything directly in `APP_DIR`, are private: they exist once
for each build of an app, under names such as `shop@acme.models`. Libraries, Tenantry and modules
that begin with `__shared__ = True` exist once in the process. All processes of a host read the same
copies of the Python files. This package knows neither Flask nor tenant files, and imports only the
error classes of Tenantry. The package `endpoints` calls this package to load an endpoint.
"""
