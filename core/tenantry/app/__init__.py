"""From a tenant to its Flask app and the layers around it.

`factory` builds the app, `stack` puts the layers around it, and `process_resources` holds what the
tenants of a process share. It may import all packages below it, but none of its own layer. `Host`
calls it first, for each build; commands call the factory directly.
"""
