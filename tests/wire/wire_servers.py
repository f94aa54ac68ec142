"""The servers that the wire corpus compares, each with one worker of eight threads and `echo_app`.

- `ours`: Tenantry's worker, as `tenantry.server.gunicorn_conf` runs it.
- `stock`: gunicorn's gthread worker with the limits of the contract.
- `nginx`: nginx with `config/nginx-site.conf` in front of Tenantry's worker.
"""

import contextlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from exchange import PROXY_LINE, Address

from servers import Server, group, running

__all__ = ["group", "running"]

OURS = "ours"
STOCK = "stock"
NGINX = "nginx"

_FOLDER = Path(__file__).parent
_SITE = Path(__file__).parents[2] / "config/nginx-site.conf"
_GUNICORN = [
    *("gunicorn", "--bind", "{bind}", "--workers", "1", "--threads", "8"),
    *("--worker-connections", "1000", "--pythonpath", str(_FOLDER)),
]
_OURS = ["-c", "python:tenantry.server.gunicorn_conf"]
_STOCK = [
    *("--worker-class", "gthread", "--keep-alive", "65", "--limit-request-line", "8190"),
    *("--limit-request-fields", "100", "--limit-request-field_size", "8190"),
    "--no-control-socket",
]
_NGINX = """\
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr crit;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_buffer_size 8m;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{site}
}}
"""


def gunicorn(side: str, app: str = "echo_app:application", *options: str) -> list[str]:
    """Return the command of a gunicorn server that runs an app of this folder."""
    return [*_GUNICORN, *(_OURS if side == OURS else _STOCK), *options, app]


@contextlib.contextmanager
def serving(side: str, folder: Path) -> Iterator[dict[str, Address]]:
    """Run a side, and return the address of each kind of listener that the side has."""
    with contextlib.ExitStack() as stack:
        if side == NGINX:
            behind = stack.enter_context(running(gunicorn(OURS), folder))
            front = stack.enter_context(_nginx_before(behind, folder))
            yield {"plain": ("127.0.0.1", front.port)}
            return
        plain = stack.enter_context(running(gunicorn(side), folder))
        command = gunicorn(side, "echo_app:application", "--proxy-protocol", "v1")
        proxy = stack.enter_context(running(command, folder, is_ready=_answers_after_proxy_line))
        yield {"plain": ("127.0.0.1", plain.port), "proxy": ("127.0.0.1", proxy.port)}


def is_installed(side: str) -> bool:
    """Return whether the programs of a side are installed."""
    return side != NGINX or shutil.which("nginx") is not None


def _answers_after_proxy_line(server: Server) -> bool:
    request = PROXY_LINE + b"GET /pid HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with contextlib.suppress(OSError):
        return b" 200 " in server.send(request)[:20]
    return False


def _nginx_before(behind: Server, folder: Path) -> contextlib.AbstractContextManager[Server]:
    """Run nginx with the project's site file, on the port that `running` chooses."""
    site = _SITE.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{behind.port}")
    # The echo app answers at `/-/livez`, so that `running` sees when nginx is ready.
    site = re.sub(r"location /-/ \{.*?\}", "", site, flags=re.DOTALL)
    site = site.replace("listen 80;", "listen 127.0.0.1:PORT;")
    (folder / "template").write_text(_NGINX.format(site=site))
    start = f"sed s/PORT/{{port}}/ template > nginx.conf && exec nginx -p {folder} -c nginx.conf"
    return running(["/bin/sh", "-c", start], folder)
