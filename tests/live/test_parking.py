"""On a real gunicorn, a tenant that ends workers is parked, and other tenants are served.

A parked tenant gets 503.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hanging import make_hanging_site
from servers import CONFIG_FILE, DEADLINE_S, Server, in_threads, program, running, wait_until
from tenantry.observability.control_socket import child_processes

pytestmark = pytest.mark.live

COMMAND = ["gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--workers", "2"]


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[Server]:
    """Return a server with two workers and the tenants acme and globex."""
    make_hanging_site(tmp_path, acme={}, globex={})
    with running(COMMAND, tmp_path, ready_path="/acme/") as server:
        wait_until(lambda: 200 == _status(server, "/globex/"))
        yield server


def _list(folder: Path) -> list[dict[str, Any]]:
    command = [program("tenantry"), "list", "--json"]
    listed = subprocess.run(command, cwd=folder, capture_output=True, check=True, text=True)
    rows: list[dict[str, Any]] = json.loads(listed.stdout)
    return rows


def _status(server: Server, path: str) -> int:
    """Return the status of one GET, or 0 if the worker ended."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return server.get(path)[0].status
    return 0


def _requesting(
    server: Server, path: str, clients: int, *, pause_s: float = 0.0
) -> contextlib.AbstractContextManager[None]:
    """Let clients request a path repeatedly until the end of the block."""

    def request(stop: threading.Event) -> None:
        while not stop.wait(pause_s):
            _status(server, path)

    return in_threads(*[request] * clients)


def _pids(server: Server) -> list[int]:
    """Return the process IDs of the workers."""
    return child_processes(server.process.pid)


def _operator_state(folder: Path) -> Path:
    return folder / "instance/acme/operator_state.json"


def _log(server: Server) -> str:
    return server.log.read_text()


@pytest.mark.parametrize("path", ["/acme/exit", "/acme/kill"])
def test_a_tenant_that_ends_three_workers_is_parked(
    server: Server, tmp_path: Path, path: str
) -> None:
    """A tenant whose requests end three workers is parked: it gets 503 until `tenantry enable`.

    Requests of other tenants are still served.
    """
    statuses = [_status(server, path) for _ in range(3)]
    wait_until(lambda: ["failed"] == [row["state"] for row in _list(tmp_path)][:1])
    wait_until(lambda: {503} == {_status(server, "/acme/") for _ in range(9)})
    [acme, globex] = _list(tmp_path)
    others = {_status(server, "/globex/") for _ in range(9)}

    assert ([0, 0, 0], {200}) == (statuses, others)
    reason = "parked: one of its requests ended a worker"
    assert ("failed", f"{reason}; fix it, then run: tenantry enable acme") == (
        acme["state"],
        acme["reason"],
    )
    assert (True, "") == (globex["state"] in {"idle", "serving"}, globex["reason"])
    assert 1 == _log(server).count("tenant.parked")
    subprocess.run([program("tenantry"), "enable", "acme"], cwd=tmp_path, check=True)
    wait_until(lambda: {200} == {_status(server, "/acme/") for _ in range(9)})


def test_a_tenant_that_holds_the_interpreter_lock_is_parked(server: Server, tmp_path: Path) -> None:
    """A tenant that repeatedly blocks the interpreter is parked, and then other tenants serve."""
    with _requesting(server, "/acme/regex", 2, pause_s=0.1):
        wait_until(lambda: "tenant.parked" in _log(server))
        wait_until(lambda: {503} == {_status(server, "/acme/") for _ in range(9)})
        others = {_status(server, "/globex/") for _ in range(50)}

    assert {200} == others
    assert "held the interpreter lock" in _operator_state(tmp_path).read_text()


def test_a_tenant_that_ends_workers_during_its_build_is_parked(tmp_path: Path) -> None:
    """If building a tenant's app ends workers, only that tenant is parked."""
    tenants = make_hanging_site(tmp_path, acme={}, globex={})
    package = tmp_path / "stuck/bad"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "blueprint.py").write_text("import os\nos._exit(3)\n")
    acme = tenants / "acme.py"
    acme.write_text(acme.read_text().replace("hanging", "bad"))
    with running(COMMAND, tmp_path, ready_path="/globex/") as server:
        with _requesting(server, "/globex/sleep/0.3", 3):
            wait_until(lambda: _status(server, "/acme/") == 503 and "tenant.parked" in _log(server))
        parked = {row["name"]: row["reason"] for row in _list(tmp_path)}

    assert parked["acme"].startswith("parked: its build ended a worker")
    assert "" == parked["globex"]


def test_a_crash_beside_a_busy_tenant_is_blamed_on_its_thread(
    server: Server, tmp_path: Path
) -> None:
    """If a request crashes its worker, the host blames that request's tenant, not a busier one."""
    with _requesting(server, "/globex/sleep/0.3", 6):
        # Some of these requests are cut only because an earlier one has just ended their worker.
        wait_until(
            lambda: _status(server, "/acme/crash") == 503 and "tenant.parked" in _log(server)
        )
    reasons = {row["name"]: row["reason"] for row in _list(tmp_path)}

    assert reasons["acme"].startswith("parked: one of its requests ended a worker; fix it")
    strikes = [line for line in _log(server).splitlines() if "tenant.struck" in line]
    assert ("", []) == (reasons["globex"], [line for line in strikes if "acme" not in line])


def test_no_tenant_is_blamed_for_a_kill_from_outside(tmp_path: Path) -> None:
    """If workers are killed from outside, the tenants with requests in flight get no strikes."""
    make_hanging_site(tmp_path, acme={}, globex={})
    command, names = [*COMMAND[:-1], "1"], ("acme", "globex")
    with running(command, tmp_path, "/acme/", TENANTRY_DEADLINE_S="0.1") as server:
        for _ in range(3):
            # A new worker accepts requests after 0.5 s, even if it has not loaded all tenants.
            wait_until(lambda: {200} == {_status(server, f"/{name}/") for name in names})
            clients = [
                threading.Thread(target=_status, args=(server, f"/{name}/sleep/{2 * DEADLINE_S}"))
                for name in names
            ]
            for client in clients:
                client.start()
            wait_until(lambda: [1, 1] == _stuck(tmp_path))
            for pid in child_processes(server.process.pid):
                os.kill(pid, signal.SIGKILL)
            for client in clients:
                client.join()
            wait_until(lambda: 200 == _status(server, "/globex/"))

        assert (0, 0) == (_log(server).count("tenant.struck"), _log(server).count("tenant.parked"))


def _stuck(folder: Path) -> list[int]:
    """Return how many requests of each tenant are stuck."""
    return [sum(worker["stuck"] for worker in row.get("workers", [])) for row in _list(folder)]


def _hup(server: Server, _folder: Path) -> None:
    os.kill(server.process.pid, signal.SIGHUP)


def _term_workers(server: Server, _folder: Path) -> None:
    for pid in _pids(server):
        os.kill(pid, signal.SIGTERM)


def _quit_workers(server: Server, _folder: Path) -> None:
    for pid in _pids(server):
        os.kill(pid, signal.SIGQUIT)


def _restart(_server: Server, folder: Path) -> None:
    subprocess.run([program("tenantry"), "restart"], cwd=folder, check=True)


@pytest.mark.parametrize("end", [_hup, _term_workers, _quit_workers, _restart])
def test_no_tenant_is_blamed_for_a_planned_stop(
    server: Server, tmp_path: Path, end: Callable[[Server, Path], None]
) -> None:
    """No tenant is blamed if HUP, TERM, QUIT or `tenantry restart` stops a worker."""
    old = set(_pids(server))
    client = threading.Thread(target=_status, args=(server, "/acme/sleep/2.0"))
    client.start()
    end(server, tmp_path)
    wait_until(lambda: not old & set(_pids(server)) and len(_pids(server)) == 2)
    client.join()

    assert "tenant.struck" not in _log(server)


def test_no_tenant_is_blamed_for_max_requests(tmp_path: Path) -> None:
    """No tenant is blamed if `max_requests` ends a worker while a request is in flight."""
    make_hanging_site(tmp_path, acme={})
    options = ["--max-requests", "20", "--max-requests-jitter", "0"]
    with running([*COMMAND, *options], tmp_path, ready_path="/acme/") as server:
        old = set(_pids(server))
        while old & set(_pids(server)):
            _status(server, "/acme/sleep/0.01")

        assert "tenant.struck" not in _log(server)


def _connection_to(server: Server, pid: int) -> http.client.HTTPConnection:
    """Return a keep-alive connection to the given worker."""
    found: list[http.client.HTTPConnection] = []

    def is_connected() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
        connection.request("GET", "/globex/")
        if int(connection.getresponse().read()) == pid:
            found.append(connection)
            return True
        connection.close()
        return False

    wait_until(is_connected)
    return found[0]


def test_a_worker_with_all_threads_stuck_is_replaced(tmp_path: Path) -> None:
    """A worker whose threads are all stuck is replaced, and its waiting requests get 503."""
    make_hanging_site(tmp_path, acme={}, globex={})
    command = [*COMMAND, "--threads", "2"]
    with running(command, tmp_path, "/globex/", TENANTRY_DEADLINE_S="1") as server:
        wait_until(lambda: 2 == len(child_processes(server.process.pid)))
        wait_until(lambda: 200 == _status(server, "/acme/"))
        stuck, other = child_processes(server.process.pid)
        unaffected = _connection_to(server, other)
        held = [_connection_to(server, stuck) for _ in range(3)]
        unaffected.request("GET", "/globex/sleep/6.0")
        for connection, path in zip(
            held, ("/acme/sleep/60.0", "/globex/sleep/60.0", "/globex/"), strict=True
        ):
            connection.request("GET", path)

        refused = held[2].getresponse()
        later = {_status(server, "/globex/") for _ in range(9)}
        finished = unaffected.getresponse().status
        wait_until(lambda: stuck not in child_processes(server.process.pid))
        wait_until(lambda: 2 == len(child_processes(server.process.pid)))
        for connection in (unaffected, *held):
            connection.close()

        assert (503, "1", 200) == (refused.status, refused.headers["Retry-After"], finished)
        assert {200} == later - {503}
        # Each of the two tenants gets half of the blame.
        assert 2 == _log(server).count("tenant.struck")
        assert "worker.given_up" in _log(server)
