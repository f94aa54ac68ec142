"""gunicorn's hooks `pre_request` and `post_request`, and gunicorn's own access log."""

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

from tenantry.server.exchange import Exchange


def runner(app: Any, worker: Any) -> Callable[[Exchange], None]:
    """Return the function that runs a request, with the worker's hooks, if any.

    Args:
        app: the WSGI application.
        worker: gunicorn's worker.
    """
    hooks = worker.request_hooks()
    if hooks is None:
        return partial(Exchange.respond, app=app, log=worker.log)
    return partial(_run_with_hooks, app=app, worker=worker, hooks=hooks)


def _run_with_hooks(
    exchange: Exchange, *, app: Any, worker: Any, hooks: tuple[Any, Any, bool]
) -> None:
    environ, begun, log = exchange.environ, time.monotonic(), worker.log
    request = _request_for_hooks(exchange)
    pre_request, post_request, log_access = hooks
    try:
        if pre_request is not None:
            pre_request(worker, request)
    except Exception:
        log.exception("Exception in pre_request hook")
    exchange.respond(app, log)
    took = timedelta(seconds=time.monotonic() - begun)
    try:
        if log_access:
            log.access(exchange, request, environ, took)
        if post_request is not None:
            post_request(worker, request, environ, exchange)
    except Exception:
        log.exception("Exception in the access log or the post_request hook")


def _request_for_hooks(exchange: Exchange) -> SimpleNamespace:
    """Return a request as gunicorn's hooks and gunicorn's access log expect it."""
    environ = exchange.environ
    fields = [
        (key.removeprefix("HTTP_").replace("_", "-"), value)
        for key, value in environ.items()
        if key.startswith("HTTP_") or key in ("CONTENT_TYPE", "CONTENT_LENGTH")
    ]
    return SimpleNamespace(
        method=environ["REQUEST_METHOD"],
        uri=environ["RAW_URI"],
        path=environ["PATH_INFO"],
        query=environ["QUERY_STRING"],
        version=(1, int(not exchange.framing.is_http_1_0)),
        headers=fields,
        scheme=environ["wsgi.url_scheme"],
        body=environ["wsgi.input"],
    )
