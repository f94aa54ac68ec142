"""How gunicorn serves the host: `gunicorn -c config/gunicorn.conf.py`, or `tenantry serve`.

Every number has its reason; gunicorn's command line overrides each of them. `--bind` on the
command line replaces both listeners: name the admin listener there too, if it is wanted.
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

# The tenants' listener first. A proxy belongs in front of it (TLS, buffering), so: loopback.
bind = ["127.0.0.1:8000"]
if _settings.admin_bind != "off":
    bind.append(_settings.admin_bind)

# gthread, made safe against slow clients and a tenant's SystemExit.
worker_class = "tenantry.server.worker.TenantWorker"

# Two: one goes on while the other restarts. More than one per processor gains nothing (GIL).
workers = max(2, min(os.cpu_count() or 1, 8))

# 8 per worker: a tenant that sleeps in all the threads it may have leaves some to the others;
# more threads alone do not help a neighbour (972 times its p99 with 32, measured 2026-11).
threads = 8

# The host is built in each worker, never in the master: no tenant's code runs there, and a
# restart of one worker reads the newest code.
preload_app = False

# Longer than nginx keeps an idle upstream connection (60 s), so that the side that closes is
# never the one that a request is on its way to.
keepalive = 65

# Seconds without a heartbeat of a worker's main loop. It beats every second however slow the
# requests are: 16 clients that compute on 8 threads left no more between two beats (1.0 s, on two
# processors at a load of 16). So long without one means that a tenant holds the interpreter lock,
# and nobody else on that worker is answered. Three such deaths park the tenant: 13 to 18 s after
# its first request, with two clients on two workers; with 30 s here it would be over a minute.
timeout = 5

# Seconds that requests in flight get when a worker stops: as long as a slow request may take.
graceful_timeout = 30

# A worker is replaced after so many requests, against slow leaks of tenants' code: half an hour
# of full load at least. The jitter keeps two workers from stopping at the same time.
max_requests = 1_000_000
max_requests_jitter = 1_000_000

# Open connections of one worker, idle ones included: with more than half of the file descriptors
# a worker died of EMFILE under 200 idle clients (`ulimit -n 64`).
worker_connections = max(16, min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 16))

# The heads that are accepted: what browsers send at most, and nothing that costs to parse.
limit_request_line = 4094
limit_request_fields = 100
limit_request_field_size = 8190

# A client's headers change no routing: `SCRIPT_NAME: /acme` on /acme/globex/x would reach globex.
# Proxies are trusted by TENANTRY_TRUSTED_PROXIES and nowhere else.
forwarder_headers = ""
header_map = "drop"
forwarded_allow_ips = ""
secure_scheme_headers: dict[str, str] = {}

# Shared ports reset connections at a reload (gunicorn #3612).
reuse_port = False

# Its default path is shared by all gunicorns of a user: the last to start takes it, and deletes it.
control_socket_disable = True

# Heartbeat files on a disk stall with the disk.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108

# Its lines in the form of all others, on stderr.
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
    """Let the worker's class see that one is gone, in the master."""
    del server
    getattr(worker, "note_exit", lambda: None)()  # of another class: there is none
