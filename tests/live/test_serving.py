"""The same host runs under gunicorn, uWSGI, waitress and Flask's development server."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import tenant_text
from servers import DEADLINE_S, Server, answers_at, free_port, group, program, running, wait_until
from tenantry.endpoints.landing.models import INFO

pytestmark = pytest.mark.live


def _worker_pids(server: Server) -> list[int]:
    return [pid for pid in group(server.process.pid) if pid != server.process.pid]


def _page(server: Server, path: str, *, port: int = 0) -> tuple[int, object]:
    """Return the status and the parsed JSON of the response for a path."""
    response, body = server.get(path, port=port)
    return response.status, json.loads(body)


def _write_tenants(folder: Path, **texts: str) -> None:
    (folder / "tenants").mkdir()
    for name, text in texts.items():
        (folder / "tenants" / f"{name}.py").write_text(text)


@pytest.fixture(name="two_tenants")
def _two_tenants(tmp_path: Path) -> Path:
    """Return a folder that contains a tenants folder with acme and globex."""
    _write_tenants(tmp_path, acme=tenant_text("acme"), globex=tenant_text("globex"))
    return tmp_path


# -- one host, four servers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        [
            *("uwsgi", "--http", "{bind}", "--module", "tenantry.wsgi:application"),
            *("--virtualenv", sys.prefix, "--die-on-term", "--enable-threads"),
        ],
        ["waitress-serve", "--listen", "{bind}", "tenantry.wsgi:application"],
    ],
    ids=lambda command: str(command[0]),
)
def test_another_server_serves_the_host(two_tenants: Path, command: list[str]) -> None:
    """The landing page has the same response under uWSGI and under waitress."""
    with running(command, two_tenants) as server:
        response, body = server.get("/acme/?name=Ada")

    assert (response.status, json.loads(body)) == (201, {"hello": "Ada", "info": INFO})


@pytest.mark.parametrize(
    "command",
    [
        ["tenantry", "serve", "--bind", "{bind}", "--workers", "2"],
        [
            *("uwsgi", "--http", "{bind}", "--module", "tenantry.wsgi:application"),
            *("--virtualenv", sys.prefix, "--die-on-term", "--enable-threads"),
            *("--processes", "2", "--master", "--lazy-apps"),
        ],
    ],
    ids=lambda command: str(command[0]),
)
def test_workers_count_a_rate_together(tmp_path: Path, command: list[str]) -> None:
    """Two workers together admit three of six requests, and their replacements admit none."""
    _write_tenants(tmp_path, acme=tenant_text("acme", RATE_LIMIT="3/hour"))
    with running(command, tmp_path) as server:
        statuses = [server.get("/acme/")[0].status for _ in range(6)]
        workers = _worker_pids(server)
        if command[0] == "tenantry":
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not set(workers) & set(_worker_pids(server)))
            wait_until(lambda: answers_at(server, "/-/livez"))
        later = [server.get("/acme/")[0].status for _ in range(3)]

    assert ([201] * 3 + [429] * 3, [429] * 3) == (statuses, later)


def test_a_tenant_keeps_its_address_and_its_last_good_version(tmp_path: Path) -> None:
    """A stale tenant serves at its address after all workers were killed, and after a restart."""
    zoo = tenant_text("zoo", URL_PREFIX="/shop")
    _write_tenants(tmp_path, zoo=zoo)
    record = tmp_path / "instance/.last_good/claims.json"
    command = ["tenantry", "serve", "--bind", "{bind}", "--workers", "2"]
    names = []
    with running(command, tmp_path) as server:
        wait_until(lambda: server.get("/shop/?name=Ada")[0].status == 201 and record.exists())
        (tmp_path / "tenants/aaa.py").write_text(tenant_text("aaa", URL_PREFIX="/shop"))
        (tmp_path / "tenants/zoo.py").write_text("SECRET_KEY = ")
        wait_until(lambda: server.log.read_text().count("tenant.rejected") >= 4)
        workers = _worker_pids(server)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not set(workers) & set(_worker_pids(server)))
        names.append(server.get("/shop/")[0].status)
    with running(command, tmp_path) as server:
        names.append(server.get("/shop/")[0].status)
        states = subprocess.run(
            [program("tenantry"), "list", "--json"], cwd=tmp_path, capture_output=True, check=True
        )

    found = {row["name"]: row["state"] for row in json.loads(states.stdout)}
    assert ([201, 201], {"aaa": "failed", "zoo": "stale"}) == (names, found)


def test_run_is_flasks_development_server_for_one_tenant(two_tenants: Path) -> None:
    """With `tenantry run acme -- run --debug`, the tenant answers under its prefix and at `/`."""
    command = ["tenantry", "run", "acme", "--", "run", "--debug", "--port", "{port}"]

    with running(command, two_tenants, ready_path="/acme/") as server:
        answers = [_page(server, path) for path in ("/acme/?name=Ada", "/?name=Ada")]

    assert answers == [(201, {"hello": "Ada", "info": INFO})] * 2


def test_serve_only_serves_the_chosen_tenants(two_tenants: Path) -> None:
    """`tenantry serve --only acme` serves and reports only acme; other tenants get 404."""
    command = ["tenantry", "serve", "--bind", "{bind}", "--workers", "1", "--only", "acme"]

    with running(command, two_tenants) as server:
        statuses = [server.get(path)[0].status for path in ("/acme/", "/globex/")]

    assert [201, 404] == statuses
    assert "1 tenant from tenants:" in server.log.read_text()


# -- `tenantry serve`: two listeners, a report -----------------------------------------------------

GLOBEX_IS_BROKEN = "SECRET_KEY = "


@pytest.fixture(name="admin_port", scope="module")
def _admin_port() -> int:
    return free_port()


@pytest.fixture(name="served", scope="module")
def _served(tmp_path_factory: pytest.TempPathFactory, admin_port: int) -> Iterator[Server]:
    """Return a server with a valid and a broken tenant, and with a listener for operators."""
    folder = tmp_path_factory.mktemp("served")
    initech = tenant_text("initech", ENABLED=False)
    _write_tenants(folder, acme=tenant_text("acme"), globex=GLOBEX_IS_BROKEN, initech=initech)
    command = ["tenantry", "serve", "--bind", "{bind}", "--workers", "1"]
    admin_bind = f"127.0.0.1:{admin_port}"
    with running(command, folder, TENANTRY_ADMIN_BIND=admin_bind) as server:
        yield server


def test_operators_see_names_and_reasons(served: Server, admin_port: int) -> None:
    """`/-/readyz` on the operators' listener says which tenant is not ready, and why."""
    status, page = _page(served, "/-/readyz", port=admin_port)

    assert isinstance(page, dict)
    acme, globex = page["mounts"]
    assert (status, acme["name"], acme["reason"]) == (503, "acme", "")
    assert (globex["name"], globex["state"]) == ("globex", "failed")
    assert "tenants/globex.py" in globex["reason"]


def test_clients_see_counts_only(served: Server) -> None:
    """`/-/readyz` on the tenants' listener contains no tenant names and no reasons."""
    status, page = _page(served, "/-/readyz")

    assert isinstance(page, dict)
    assert (status, sorted(page), page["tenants"]["failed"]) == (503, ["status", "tenants"], 1)
    assert sum(page["tenants"].values()) == 2


def test_gunicorn_serves_the_host(served: Server) -> None:
    """Under `tenantry serve`, a tenant answers with its landing page."""
    status, page = _page(served, "/acme/?name=Ada")

    assert (status, page) == (201, {"hello": "Ada", "info": INFO})


@pytest.mark.parametrize("path", ["/globex/", "/acme/", "/"])
def test_no_tenant_is_served_on_the_admin_listener(
    served: Server, admin_port: int, path: str
) -> None:
    """The operators' listener serves no tenant, so tenants and operators' pages share no origin."""
    assert served.get(path, port=admin_port)[0].status == 404


@pytest.mark.parametrize("path", ["/-/admin/", "/-/admin", "/-/metrics", "/-/", "/-/readyz/"])
def test_no_operators_page_is_served_on_the_tenants_listener(served: Server, path: str) -> None:
    """On the tenants' listener, operators' pages such as `/-/metrics` get 404."""
    assert served.get(path)[0].status == 404


def test_a_host_header_does_not_open_the_operators_pages(served: Server, admin_port: int) -> None:
    """The `Host` header has no influence on whether the operators' pages are served."""
    response, body = served.get("/-/readyz", {"Host": f"127.0.0.1:{admin_port}"})

    assert (response.status, "mounts" in json.loads(body)) == (503, False)


def test_serve_reports_what_it_serves(served: Server, admin_port: int) -> None:
    """`tenantry serve` first lists tenants' URLs, rejected and disabled files and the admin URL."""
    log = served.log.read_text()
    report, _, _ = log.partition("Starting gunicorn")
    lines = report.splitlines()

    assert lines[:2] == [
        "1 tenant from tenants:",
        f"  acme  http://127.0.0.1:{served.port}/acme/",
    ]
    assert lines[2].startswith("rejected: tenants/globex.py:1: ")
    assert f"for operators: http://127.0.0.1:{admin_port}/-/readyz" in lines
    assert "disabled: tenants/initech.py" in lines


# -- failures ----------------------------------------------------------------------


def test_a_port_in_use_is_one_line(two_tenants: Path) -> None:
    """If the port is in use, `tenantry serve` names the port in one line and exits with 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"

        done = subprocess.run(
            [program("tenantry"), "serve", "--bind", bind],
            cwd=two_tenants,
            env=dict(os.environ) | {"TENANTRY_ADMIN_BIND": "off"},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"cannot listen on {bind}" in done.stderr


def test_an_empty_folder_is_served_without_an_admin_listener(tmp_path: Path) -> None:
    """A host without tenants is ready, and `TENANTRY_ADMIN_BIND=off` opens no second port."""
    (tmp_path / "clients").mkdir()
    settings = {"TENANTRY_TENANTS_DIR": str(tmp_path / "clients"), "TENANTRY_ADMIN_BIND": "off"}
    command = ["tenantry", "serve", "--bind", "{bind}", "--workers", "1"]

    with running(command, tmp_path, **settings) as server:
        answers = [server.get(path)[0].status for path in ("/-/readyz", "/", "/acme/")]
        log = server.log.read_text()

    assert answers == [200, 404, 404]
    assert (log.count("Listening at"), "for operators" in log) == (1, False)


@pytest.mark.parametrize("means", ["SIGHUP to the master", "SIGKILL to the worker"])
def test_a_broken_file_does_not_stop_a_restart(served: Server, means: str) -> None:
    """If a tenant file is broken, new workers still start and serve the other tenants."""
    (old,) = _worker_pids(served)

    if means.startswith("SIGHUP"):
        os.kill(served.process.pid, signal.SIGHUP)
    else:
        os.kill(old, signal.SIGKILL)
    wait_until(lambda: old not in _worker_pids(served) and answers_at(served, "/-/livez"))

    answers = [served.get(path)[0].status for path in ("/acme/", "/globex/")]
    assert (answers, served.process.poll()) == ([201, 503], None)
