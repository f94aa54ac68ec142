"""Logs, usage, metrics, the scoreboard and the workers' control sockets, for operators.

The package `observability` imports `http` and `errors`, but neither Flask nor gunicorn. `redaction`
reads the configuration of Flask's current app if the process has imported Flask. `server.log` and
`host` call `logging` at the start. For each request, `middleware.accounting` calls `usage_counters`
and `access_log`.
"""
