"""What operators see: logs, usage, metrics, the scoreboard and the workers' control sockets.

The package `observability` may import `http` and `errors`, but neither Flask nor gunicorn. If
another module has imported Flask, `redaction` reads the configuration of Flask's current app. At
startup, `server.log` and `host` call `logging`. For each request, `middleware.accounting` calls
`usage_counters` and `access_log`.
"""
