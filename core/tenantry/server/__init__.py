"""The gunicorn worker: it waits for slow clients without a thread and admits requests fairly.

It knows gunicorn and WSGI, not Flask. It may import the packages below it; `admission` reads the
host's mounts and limits. gunicorn calls it first, through `gunicorn_conf`, as its `worker_class`.
"""
