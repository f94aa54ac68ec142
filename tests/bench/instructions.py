"""Compares the instructions of a request in the host with those in a plain Flask app.

    python tests/bench/instructions.py

Both sides run the same endpoint in one process without a server. The host has admission, limits,
usage counters and an access log. The plain app has a secret key, like every app with sessions.
valgrind counts the instructions of the thread that runs the requests, so that the figure does not
depend on other load; the host's background threads, one of which writes the log lines, do not
count. The count of 100 requests is subtracted from the count of 300 requests, so that the start
does not count. The host may take at most 1.15 times the instructions of the plain app.
"""

import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask
from loads import Bounds

from tenantry.endpoints.landing.blueprint import landing_bp
from tenantry.host import create_host
from tenantry.http.environ import CONNECTION
from tenantry.observability.scoreboard import Scoreboard
from tenantry.settings import HostSettings

REQUESTS = (100, 300)
MAX_RATIO = 1.15
SECRET_KEY = "k" * 40


def main() -> None:
    """Count both sides, or run the requests of one side."""
    if len(sys.argv) > 1:
        run(sys.argv[1], int(sys.argv[2]))
    plain, host = count("plain"), count("host")
    print(f"instructions per request: plain app {plain:,.0f}, host {host:,.0f}")
    bounds = Bounds()
    bounds.check("instructions, host ÷ plain app", host / plain, MAX_RATIO)
    bounds.end()


def count(side: str) -> float:
    """Return the instructions of one request of a side."""
    few, many = (_instructions(side, number) for number in REQUESTS)
    return (many - few) / (REQUESTS[1] - REQUESTS[0])


def _instructions(side: str, number: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--separate-threads=yes"]
        command += [f"--callgrind-out-file={folder}/counts"]
        command += [sys.executable, __file__, side, str(number)]
        subprocess.run(command, capture_output=True, check=True)
        counts = Path(folder, "counts-01").read_text()  # thread 1 is the main thread
    found = re.search(r"^(?:summary|totals): (\d+)", counts, re.MULTILINE)
    if found is None:
        raise SystemExit("valgrind has counted nothing")
    return int(found[1])


def run(side: str, number: int) -> None:
    """Run requests of one side, and end the process without clean-up."""
    with tempfile.TemporaryDirectory() as folder:
        request = host_request(Path(folder)) if side == "host" else plain_request()
        for _ in range(number):
            request()
        os._exit(0)


def plain_request() -> Callable[[], None]:
    """Return a function that sends a request to a plain Flask app with the landing endpoint."""
    app = Flask("plain")
    app.secret_key = SECRET_KEY
    app.register_blueprint(landing_bp, url_prefix="/acme")
    return lambda: _exhaust(app.wsgi_app(_environ(), _start_response))


def host_request(folder: Path) -> Callable[[], None]:
    """Return a function that sends a request to the host, as Tenantry's worker does."""
    tenants_dir = folder / "tenants"
    tenants_dir.mkdir()
    (tenants_dir / "acme.py").write_text(f"SECRET_KEY = {SECRET_KEY!r}\nBLUEPRINTS = ['landing']")
    os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT), 2)
    settings = HostSettings(tenants_dir=tenants_dir, data_dir=folder / "instance")
    host = create_host(settings, is_serving=True)
    host.start("gunicorn", row=Scoreboard().claim_row(), threads=8)
    admission = host.admission

    def request() -> None:
        environ = _environ() | {CONNECTION: None}
        admission.route(environ, None)
        admission.enter(environ)
        _exhaust(admission.app(environ, _start_response))

    return request


def _environ() -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/acme/",
        "QUERY_STRING": "name=Ada",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "127.0.0.1:8000",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.input": io.BytesIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }


def _start_response(*_: object) -> Any:
    return None


def _exhaust(body: Any) -> None:
    for _ in body:
        pass
    body.close()


if __name__ == "__main__":
    main()
