"""The parts of gunicorn that Tenantry's worker uses, in one list that is checked at start.

If a method or an attribute is missing, or if a setting asks for a feature that the worker lacks,
gunicorn's own threaded worker serves instead. In that worker, the host's layers decide in the
request's thread.
"""

import inspect
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker
from gunicorn.workers.workertmp import WorkerTmp

CLASSES: dict[type, tuple[str, ...]] = {
    Worker: (
        "__init__", "handle_abort", "handle_exit", "handle_quit", "init_process", "init_signals",
        "load_wsgi", "notify", "run",
    ),
    WorkerTmp: ("__init__", "close", "fileno", "last_update", "notify"),
    Logger: ("access", "critical", "error", "exception", "info", "reopen_files", "warning"),
    Arbiter: ("APP_LOAD_ERROR", "START_CTX", "WORKER_BOOT_ERROR"),
}  # fmt: skip
"""The methods and attributes that the worker calls, overrides or sets."""

WORKER_ARGUMENTS = ("age", "ppid", "sockets", "app", "timeout", "cfg", "log")
"""The arguments with which the arbiter creates a worker."""

SETTINGS = (
    "accesslog", "graceful_timeout", "header_map", "is_ssl", "keepalive",
    "limit_request_field_size", "limit_request_fields", "limit_request_line", "max_requests",
    "post_request", "pre_request", "proxy_allow_ips", "proxy_protocol", "threads", "timeout",
    "worker_connections", "workers",
)  # fmt: skip
"""The settings that the worker reads."""

LENIENT_SETTINGS = (
    "casefold_http_method", "permit_obsolete_folding", "permit_unconventional_http_method",
    "permit_unconventional_http_version", "strip_header_spaces",
)  # fmt: skip
"""Settings that make gunicorn's parser accept what HTTP forbids."""


def missing_names() -> list[str]:
    """Return the names that this version of gunicorn lacks."""
    missing = [
        f"{owner.__name__}.{name}"
        for owner, names in CLASSES.items()
        for name in names
        if not hasattr(owner, name)
    ]
    arguments = tuple(inspect.signature(Worker.__init__).parameters)[1:]
    if arguments != WORKER_ARGUMENTS:
        missing.append(f"Worker.__init__({', '.join(WORKER_ARGUMENTS)})")
    config = Config()
    return missing + [f"setting {name}" for name in SETTINGS if not hasattr(config, name)]


def why_not_ours(cfg: Any) -> str:
    """Return why gunicorn's own threaded worker has to serve; empty if Tenantry's can."""
    missing = missing_names()
    if missing:
        return f"this version of gunicorn has no {', '.join(missing)}"
    if cfg.is_ssl:
        return "TLS is set"
    if getattr(cfg, "protocol", "http") not in ("http", None):
        return f"the protocol is {cfg.protocol}"
    lenient = [name for name in LENIENT_SETTINGS if getattr(cfg, name, False)]
    if cfg.header_map == "dangerous":
        lenient.append("header_map")
    return f"{', '.join(lenient)} is set" if lenient else ""


def custom_hook(cfg: Any, name: str) -> Any:
    """Return a hook of the configuration, or None for gunicorn's default, which does nothing."""
    hook = getattr(cfg, name)
    return None if hook is getattr(Config(), name) else hook
