"""What operators see: logs, usage, metrics, the scoreboard and the workers' control sockets.

It imports `http` and `errors`, and knows neither Flask nor gunicorn. The server and every
command call `logging` first. For each request, `middleware.accounting` then calls `usage_counters`
and `access_log`.
"""
