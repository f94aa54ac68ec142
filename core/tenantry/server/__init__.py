"""The gunicorn worker: an event loop that waits for slow clients without a thread.

`worker` is gunicorn's `worker_class`, which `gunicorn_conf` sets. The worker starts the `loop`,
which calls `protocol` when bytes arrive. `admission` asks the host about each request, and
`exchange` runs the request. The package depends on gunicorn and WSGI, but not on Flask, and may
import packages of lower layers.
"""
