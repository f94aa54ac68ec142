"""gunicorn's configuration for the host, used by `tenantry serve`.

By hand: `gunicorn -c python:tenantry.server.gunicorn_conf`. gunicorn's command line overrides each
setting. There, `--bind` replaces both listeners, so name the operators' listener, too.
"""

from tenantry.python_process import search_current_folder_last

search_current_folder_last()  # gunicorn puts it first

import os
import resource
import sys
from typing import Any

from tenantry.settings import SettingsError, read_settings

try:
    _settings = read_settings()
except SettingsError as error:
    sys.exit(f"tenantry: {error}")

wsgi_app = "tenantry.wsgi:application"

# The tenants' listener comes first. Loopback, because a proxy belongs in front (TLS, buffering).
bind = ["127.0.0.1:8000"]
if _settings.admin_bind != "off":
    bind.append(_settings.admin_bind)

# Like gthread, but slow clients hold no thread, and no tenant takes the threads of the others.
worker_class = "tenantry.server.worker.TenantWorker"

# At least two, so that one serves while the other restarts. More than one per processor gains
# nothing, because of the interpreter lock.
workers = max(2, min(os.cpu_count() or 1, 8))

# A tenant whose requests sleep in all threads that it may have leaves some for the others. More
# threads alone do not help its neighbours (972 times their p99 with 32 threads, 2026-11).
threads = 8

# Each worker builds its own host, so that no tenant's code runs in the master and a new worker
# reads the newest code.
preload_app = False

# Longer than nginx keeps an idle upstream connection (60 s). Otherwise, the worker could close a
# connection while a request is on its way.
keepalive = 65

# Seconds without a heartbeat of a worker's main loop. It beats every second, however slow requests
# are: with 16 clients that compute on 8 threads, two beats were at most 1.0 s apart (two processors
# at a load of 16). A longer gap means that a request holds the interpreter lock and that this
# worker answers nothing. Three such deaths park the tenant 13 to 18 s after its first request (two
# clients, two workers). With 30 s here, it would take over a minute.
timeout = 5

# Seconds that requests in flight have to finish when a worker stops: enough for slow requests.
graceful_timeout = 30

# Requests after which a worker is replaced, against slow leaks in tenants' code: at least half an
# hour of full load. The jitter keeps workers from stopping at the same time.
max_requests = 1_000_000
max_requests_jitter = 1_000_000

# Open connections of one worker, including idle ones. With more than half of the file descriptors,
# a worker died of EMFILE under 200 idle clients (`ulimit -n 64`).
worker_connections = max(16, min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 16))

# Limits of a request head: what browsers send at most, and nothing that is expensive to parse.
limit_request_line = 4094
limit_request_fields = 100
limit_request_field_size = 8190

# No header may change the routing: `SCRIPT_NAME: /acme` on /acme/globex/x would reach globex.
# Only TENANTRY_TRUSTED_PROXIES decides which proxies are trusted.
forwarder_headers = ""
header_map = "drop"
forwarded_allow_ips = ""
secure_scheme_headers: dict[str, str] = {}

# With reuse_port, a reload resets connections (gunicorn #3612).
reuse_port = False

# All gunicorns of a user share the default path. The last one to start takes it over and deletes
# it.
control_socket_disable = True

# A heartbeat file on a disk stalls when the disk does.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108

# Writes gunicorn's log lines to stderr, in the same format as all others.
logger_class = "tenantry.server.log.GunicornLogger"


def pre_exec(server: Any) -> None:
    """Make SIGUSR2 repeat the command that started this master, with its `-P -m` options.

    gunicorn's own `python …/__main__.py` puts the folder of that file first on `sys.path`.
    """
    server.START_CTX["args"] = sys.orig_argv


def on_starting(arbiter: Any) -> None:
    """Let no tenant stop gunicorn: a worker's exit code 3 or 4 makes the master stop everything.

    gunicorn uses them for a worker that cannot boot or load its app. With other numbers, the
    `os._exit(3)` of a tenant ends its worker only.
    """
    arbiter.WORKER_BOOT_ERROR, arbiter.APP_LOAD_ERROR = 193, 194


def child_exit(server: object, worker: Any) -> None:
    """Tell the worker's object in the master that its process has ended."""
    del server
    getattr(worker, "note_exit", lambda: None)()  # other worker classes have none
