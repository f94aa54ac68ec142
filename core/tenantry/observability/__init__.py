"""What operators see: logs, usage, metrics, the scoreboard and the workers' control sockets.

It imports `http` and `errors`, but neither Flask nor gunicorn. `redaction` reads the configuration
of Flask's current app if Flask has been imported. `server.log` and `host` call `logging` first. For
each request, `middleware.accounting` then calls `usage_counters` and `access_log`.
"""
