"""Tenantry: many isolated Flask apps, one per client group, in one gunicorn.

The floor plan. Imports only go down; rooms on one floor do not know each other; import-linter
checks it (`pyproject.toml`).

    wsgi          cli/                     what a server or an operator starts
    host                                   the only room where the parts meet
    app_factory   catalogue                a tenant's Flask app; what the tenants folder says
    endpoints/                             loading an endpoint for one app; the endpoints
    containment   front   host_pages       each usable alone:
    limits   mounts   telemetry   worker   WSGI layers, routing, logs, the gunicorn worker
    loader        tenant                   a tenant file becomes plain data, then a Tenant
    database_url  loader_process  problem  what both stand on; the host's own answers
    errors                                 what can go wrong, drawn as a tree

Words (each means one thing everywhere): a *tenant* is the validated content of one tenant file;
an *app* is the Flask object built from it; an *instance* is an app while it serves; a *mount* is a
URL prefix and the instance that it serves now; the *host* is the process; an *endpoint* is a
feature package that a tenant enables by name.
"""
