"""The package that builds a tenant's Flask app and the layers around the app.

`factory` builds the app, `stack` puts the layers around the app, and `process_resources` holds the
resources that the tenants of a process share. The package `app` may import every lower package, but
no package of its own layer. `Host` calls the package `app` for each build; commands call the
factory directly.
"""
