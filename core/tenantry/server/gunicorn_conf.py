"""gunicorn's configuration for the host, used by `tenantry serve`.

Without `tenantry serve`, run `gunicorn -c python:tenantry.server.gunicorn_conf`. gunicorn's command
line overrides each setting. The option `--bind` replaces both listeners, so repeat `--bind` for the
operators' listener.
"""

from tenantry.python_process import leave_out_current_folder

# gunicorn puts the current folder on `sys.path`, both before and after it runs this file.
leave_out_current_folder()

import os
import resource
import sys
from contextlib import suppress
from typing import Any

import tenantry.server.log
import tenantry.server.worker  # noqa: F401 - gunicorn imports both by name, after this file
from tenantry.private_code import generations
from tenantry.settings import SettingsError, read_settings

try:
    _settings = read_settings()
except SettingsError as error:
    sys.exit(f"tenantry: {error}")

wsgi_app = "tenantry.wsgi:application"

# The first listener is for tenants. The default is a loopback address, because a proxy in front
# must handle TLS and buffering.
bind = ["127.0.0.1:8000"]
if _settings.admin_bind != "off":
    bind.append(_settings.admin_bind)

# With Tenantry's worker, slow clients hold no thread, and no tenant takes the threads of other
# tenants.
worker_class = "tenantry.server.worker.TenantWorker"

# Number of workers: at least two, so that one worker serves while another worker restarts. More
# than one worker per processor has no advantage, because each worker has one interpreter lock.
workers = max(2, min(os.cpu_count() or 1, 8))

# Number of request threads of a worker. Fair share leaves some threads free when the requests of
# one tenant wait in many threads. More threads alone do not help: with 32 threads, the p99 of the
# other tenants was 972 times as high (2026-11).
threads = 8

# Each worker builds its own host, so that no tenant's code runs in the master and a new worker
# reads the newest code.
preload_app = False

# Seconds that a worker keeps an idle connection: longer than nginx keeps an idle upstream
# connection (60 s), because the worker could close a connection while a request arrives.
keepalive = 65

# Seconds without a heartbeat after which gunicorn kills a worker. The leader of a worker has a
# heartbeat every half second, even with slow requests: with 16 clients that compute on 8 threads,
# two heartbeats were at most 1.0 s apart (two processors at a load of 16). A longer gap means that
# a request holds the interpreter lock, so the worker answers no request. After three killed
# workers, the tenant is parked, 13 to 18 s after the tenant's first request (two clients, two
# workers). With a timeout of 30 s, parking would take over a minute.
timeout = 5

# Seconds that requests in flight have to finish when a worker stops.
graceful_timeout = 30

# Number of requests after which gunicorn replaces a worker, because tenants' code can leak memory:
# at least half an hour of full load. The jitter keeps workers from stopping at the same time.
max_requests = 1_000_000
max_requests_jitter = 1_000_000

# Maximum number of open connections of one worker, including idle connections. When connections
# could use more than half of the file descriptors, a worker ended with EMFILE under 200 idle
# clients (`ulimit -n 64`).
worker_connections = max(16, min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 16))

# The limits of a request head admit every head of a browser, and reject a head that is expensive to
# parse.
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190

# No header may change the routing: `SCRIPT_NAME: /acme` with the path `/acme/globex/x` would reach
# the tenant `globex`. Only `TENANTRY_TRUSTED_PROXIES` decides which proxies are trusted.
forwarder_headers = ""
header_map = "drop"
forwarded_allow_ips = ""
secure_scheme_headers: dict[str, str] = {}

# Mode bits that a Unix socket for tenants does not get: only the host's own user can connect. To
# let a proxy in the group of the socket's folder connect, set GUNICORN_CMD_ARGS="--umask 007".
umask = 0o077

# With reuse_port, a reload resets connections (gunicorn #3612).
reuse_port = False

# All gunicorn masters of a user share the default path of gunicorn's control socket, and each new
# master replaces and later deletes the socket.
control_socket_disable = True

# The heartbeat file is in memory, because a write to a slow disk can block the worker.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108

# `GunicornLogger` writes gunicorn's log lines to stderr, in the format of the host's log lines.
logger_class = "tenantry.server.log.GunicornLogger"


def pre_exec(server: Any) -> None:
    """Make SIGUSR2 repeat the command that started this master, with its `-P -m` options.

    By itself, gunicorn would run `python …/__main__.py`, which puts the folder of `__main__.py`
    first on `sys.path`.
    """
    server.START_CTX["args"] = sys.orig_argv


def on_starting(arbiter: Any) -> None:
    """Warn if operators' pages are public, and change the exit codes of workers that cannot start.

    gunicorn uses the exit codes 3 and 4 for a worker that cannot boot or load its app, and then
    stops all workers. With other exit codes, the `os._exit(3)` of a tenant ends only one worker.
    """
    if arbiter.app.app_uri == wsgi_app:  # any other app may need the current folder
        leave_out_current_folder()
    if _settings.is_admin_public:
        arbiter.log.warning(
            "TENANTRY_ADMIN_BIND: %s makes the operators' pages public, and the pages have no "
            "login; use the address of an internal network, such as 127.0.0.1.",
            _settings.admin_bind,
        )
    arbiter.WORKER_BOOT_ERROR, arbiter.APP_LOAD_ERROR = 193, 194
    if arbiter.cfg.reload:
        generations.follow_disk()  # gunicorn replaces a worker when a file of its code changes
    else:
        with suppress(OSError):  # each worker tries again, and logs the error
            generations.begin_host(_settings.data_dir)


def on_reload(arbiter: object) -> None:
    """Let the workers that replace the present workers after a SIGHUP use the newest code."""
    del arbiter
    generations.begin_generation()


def child_exit(server: object, worker: Any) -> None:
    """Tell the worker object in the master that the worker process has ended."""
    del server
    getattr(worker, "note_exit", lambda: None)()  # other worker classes have no `note_exit`
    generations.remove_old_generations()


def on_exit(arbiter: object) -> None:
    """Remove the code snapshots, because all workers have ended."""
    del arbiter
    generations.end_host()
