"""The gunicorn worker: it waits for slow clients without a thread and admits requests fairly.

The package `server` knows gunicorn and WSGI, not Flask. The package `server` may import lower
packages; `admission` reads the host's mounts and limits. gunicorn reads `gunicorn_conf`, which sets
the `worker_class`.
"""
