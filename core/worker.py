from gunicorn.workers.gthread import ThreadWorker


class TenantWorker(ThreadWorker):
    pass
