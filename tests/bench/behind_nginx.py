"""Checks that no request behind nginx is lost because the host refuses another tenant's bodies.

    python tests/bench/behind_nginx.py [--seconds 30]

nginx with `config/nginx-site.conf` keeps connections to one gunicorn with 2 workers of 8 threads.
Four noisy clients post bodies of 150 kB, which the host refuses in turn: with 401, because the key
is missing; with 413, because the body is too large for the tenant; with 404, because no tenant has
the path. At the same time, four clients of the quiet tenant post and get alternately.

After a response with `Connection: keep-alive`, nginx sends the next request on the same connection.
This request is lost if the server then closes the connection. No request of the quiet tenant may
get a status of 500 or above, a wrong body, or no response.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from loads import Bounds, describe, serving, wait_until
from rows import add_endpoint

CLIENTS = 4
"""Number of noisy clients, and number of quiet clients."""

BODY = b"n" * 150_000
NOISY_PATHS = {"/keys/": (401, 429), "/small/": (413,), "/nothing/": (404,)}
"""The statuses of each refusal. Too many wrong keys from one address get 429."""

SITE = Path(__file__).parents[2] / "config/nginx-site.conf"

ENDPOINT = """\
from flask import Blueprint, request

echo_bp = Blueprint("echo", __name__)


@echo_bp.route("/", methods=["GET", "POST"])
def echo():
    return request.get_data() or request.args["text"]
"""

TENANT = "SECRET_KEY = {key!r}\nBLUEPRINTS = ['demo.echo']\n"
TENANTS = {
    "quiet": "",
    "keys": f"CLIENTS = {{'mobile': 'sha256:{'0' * 64}'}}\n",
    "small": "MAX_CONTENT_LENGTH = 1000\n",
}
"""The tenants, with the keys that make them refuse noisy bodies."""


def main() -> None:
    """Start the server and nginx, run all clients, and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30.0)
    seconds = parser.parse_args().seconds
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_echo_site(folder)
        with (
            serving(folder, 2, TENANTRY_TRUSTED_PROXIES="1") as server,
            nginx_before(server.port, folder) as port,
        ):
            for path, status in {"/quiet/?text=a": 200, "/keys/": 401}.items():
                server.wait_for(path, status)
            measure(port, seconds, bounds)
    bounds.end()


def make_echo_site(folder: Path) -> None:
    """Create the tenants and their endpoint."""
    add_endpoint(folder, "echo", ENDPOINT)
    (folder / "tenants").mkdir()
    for name, keys in TENANTS.items():
        text = TENANT.format(key=name + "-" * 32) + keys
        (folder / "tenants" / f"{name}.py").write_text(text)


@contextlib.contextmanager
def nginx_before(upstream: int, folder: Path) -> Iterator[int]:
    """Run nginx in front of a port until the end of the block. Yield the port of nginx."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if program is None:
        raise SystemExit("nginx is missing: apt-get install nginx-light")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    (folder / "nginx.conf").write_text(nginx_text(upstream, port))
    command = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]
    with (folder / "nginx.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: _accepts(port), 10)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def nginx_text(upstream: int, port: int) -> str:
    """Return a configuration of nginx with the site that the project recommends."""
    site = SITE.read_text().replace("server 127.0.0.1:8000;", f"server 127.0.0.1:{upstream};")
    site = site.replace("listen 80;", f"listen 127.0.0.1:{port};")
    paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    # As root, the workers of nginx change to a user that cannot use the benchmark's folder.
    user = "user root;" if os.geteuid() == 0 else ""
    return (
        f"daemon off; pid nginx.pid; {user} worker_processes 2; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {' '.join(f'{one}_temp_path {one};' for one in paths)}\n{site} }}"
    )


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def measure(port: int, seconds: float, bounds: Bounds) -> None:
    """Run the quiet and the noisy clients at the same time. Print what both saw."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    noise = context.Process(target=_make_noise, args=(port, seconds, theirs))
    noise.start()
    answers, lost = _run_clients(_request_quietly, port, seconds)
    statuses = ours.recv()
    noise.join()
    print(f"load average {os.getloadavg()[0]:.1f}; noisy clients: {dict(sorted(statuses.items()))}")
    print(f"  quiet  {describe([took for _, took in answers])}")
    for text in lost[:5]:
        print(f"  lost: {text}")
    bounds.check("lost requests of the quiet tenant", len(lost), 0)
    missing = [
        path
        for path, expected in NOISY_PATHS.items()
        if not any(statuses[f"{path} {status}"] for status in expected)
    ]
    bounds.check("kinds of refusals that no noisy client got", len(missing), 0)


def _make_noise(port: int, seconds: float, pipe: Pipe) -> None:
    answers, lost = _run_clients(_request_noisily, port, seconds)
    counts = Counter(text for text, _ in answers)
    pipe.send(counts + Counter(lost))


# -- clients --------------------------------------------------------------------------------------

Answers = list[tuple[str, float]]
"""The request, its result, and its duration in seconds."""


def _run_clients(send: object, port: int, seconds: float) -> tuple[Answers, list[str]]:
    """Run `CLIENTS` threads for some seconds. Return the good responses and the lost requests."""
    answers: Answers = []
    lost: list[str] = []
    until = time.perf_counter() + seconds
    arguments = (send, port, until, answers, lost)
    threads = [threading.Thread(target=_run_client, args=arguments) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, lost


def _run_client(send: object, port: int, until: float, answers: Answers, lost: list[str]) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    number = 0
    while (began := time.perf_counter()) < until:
        number += 1
        try:
            text, is_good = send(connection, number)  # type: ignore[operator]
        except (OSError, HTTPException) as error:
            text, is_good = f"{type(error).__name__} {error}", False
            connection.close()
        if is_good:
            answers.append((text, time.perf_counter() - began))
        else:
            lost.append(text)
    connection.close()


def _request_quietly(connection: HTTPConnection, number: int) -> tuple[str, bool]:
    expected = f"{threading.get_ident()}-{number}"
    if number % 2:
        connection.request("POST", "/quiet/", body=expected.encode())
    else:
        connection.request("GET", f"/quiet/?text={expected}")
    response = connection.getresponse()
    body = response.read()
    is_good = response.status == 200 and body == expected.encode()
    return f"{response.status} {body[:100]!r}", is_good


def _request_noisily(connection: HTTPConnection, number: int) -> tuple[str, bool]:
    path = list(NOISY_PATHS)[number % len(NOISY_PATHS)]
    connection.request("POST", path, body=BODY)
    response = connection.getresponse()
    response.read()
    return f"{path} {response.status}", response.status in NOISY_PATHS[path]


if __name__ == "__main__":
    main()
