"""Tenants that end workers, on a real gunicorn: parked, while nobody else's requests fail."""

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
    """Return a server of two workers with the tenants acme and globex."""
    make_hanging_site(tmp_path, acme={}, globex={})
    with running(COMMAND, tmp_path, ready_path="/acme/") as server:
        wait_until(lambda: 200 == _ask(server, "/globex/"))
        yield server


def _list(folder: Path) -> list[dict[str, Any]]:
    command = [program("tenantry"), "list", "--json"]
    said = subprocess.run(command, cwd=folder, capture_output=True, check=True, text=True)
    rows: list[dict[str, Any]] = json.loads(said.stdout)
    return rows


def _ask(server: Server, path: str) -> int:
    """Return the status of one GET; 0 where the worker ended."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return server.get(path)[0].status
    return 0


def _asking(
    server: Server, path: str, clients: int, *, pause_s: float = 0.0
) -> contextlib.AbstractContextManager[None]:
    """Let clients ask for a path again and again until the end of the block."""

    def ask(is_over: threading.Event) -> None:
        while not is_over.wait(pause_s):
            _ask(server, path)

    return in_threads(*[ask] * clients)


def _pids(server: Server) -> list[int]:
    """Return the workers."""
    return child_processes(server.process.pid)


def _operator_state(folder: Path) -> Path:
    return folder / "instance/acme/operator_state.json"


def _log(server: Server) -> str:
    return server.log.read_text()


@pytest.mark.parametrize("path", ["/acme/exit", "/acme/kill"])
def test_who_ends_three_workers_is_parked(server: Server, tmp_path: Path, path: str) -> None:
    """503 in every worker, told by `list` and in the log; `enable` lets it back; no other fails."""
    told = [_ask(server, path) for _ in range(3)]
    wait_until(lambda: ["failed"] == [row["state"] for row in _list(tmp_path)][:1])
    wait_until(lambda: {503} == {_ask(server, "/acme/") for _ in range(9)})
    [acme, globex] = _list(tmp_path)
    others = {_ask(server, "/globex/") for _ in range(9)}

    assert ([0, 0, 0], {200}) == (told, others)
    assert ("failed", "parked: a worker ended while a request of it was in flight") == (
        acme["state"],
        acme["reason"],
    )
    assert (True, "") == (globex["state"] in {"idle", "serving"}, globex["reason"])
    assert 1 == _log(server).count("tenant.parked")
    subprocess.run([program("tenantry"), "enable", "acme"], cwd=tmp_path, check=True)
    wait_until(lambda: {200} == {_ask(server, "/acme/") for _ in range(9)})


def test_who_holds_the_interpreter_lock_is_parked(server: Server, tmp_path: Path) -> None:
    """Two clients repeat a request that hangs both workers; then nobody's request fails."""
    with _asking(server, "/acme/regex", 2, pause_s=0.1):
        wait_until(lambda: "tenant.parked" in _log(server))
        wait_until(lambda: {503} == {_ask(server, "/acme/") for _ in range(9)})
        others = {_ask(server, "/globex/") for _ in range(50)}

    assert {200} == others
    assert "held the interpreter lock" in _operator_state(tmp_path).read_text()


def test_who_ends_workers_while_it_is_built_is_parked(tmp_path: Path) -> None:
    """Not its neighbour, whose requests are in flight all the time; nor does the server end."""
    tenants = make_hanging_site(tmp_path, acme={}, globex={})
    package = tmp_path / "stuck/bad"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "blueprint.py").write_text("import os\nos._exit(3)\n")
    acme = tenants / "acme.py"
    acme.write_text(acme.read_text().replace("hanging", "bad"))
    with running(COMMAND, tmp_path, ready_path="/globex/") as server:
        with _asking(server, "/globex/sleep/0.3", 3):
            wait_until(lambda: _ask(server, "/acme/") == 503 and "tenant.parked" in _log(server))
        parked = {row["name"]: row["reason"] for row in _list(tmp_path)}

    assert parked["acme"].startswith("parked: a worker ended while it was being built")
    assert "" == parked["globex"]


def test_a_crash_beside_a_busy_tenant_is_blamed_on_its_thread(
    server: Server, tmp_path: Path
) -> None:
    """The tenant whose thread crashed is parked; the busy one beside it gets no share."""
    with _asking(server, "/globex/sleep/0.3", 6):
        for _ in range(3):
            wait_until(lambda: _ask(server, "/acme/crash") == 0)
        wait_until(lambda: "tenant.parked" in _log(server))
    reasons = {row["name"]: row["reason"] for row in _list(tmp_path)}

    assert "parked: a request of it ended a worker" == reasons["acme"]
    assert ("", 3) == (reasons["globex"], _log(server).count("tenant.struck"))


def test_those_in_flight_together_share_a_strike(tmp_path: Path) -> None:
    """Three workers killed under two tenants park neither."""
    make_hanging_site(tmp_path, acme={}, globex={})
    command, names = [*COMMAND[:-1], "1"], ("acme", "globex")
    with running(command, tmp_path, "/acme/", TENANTRY_DEADLINE_S="0.1") as server:
        for _ in range(3):
            # A new worker opens its doors after 0.5 s, be all tenants known by then or not.
            wait_until(lambda: {200} == {_ask(server, f"/{name}/") for name in names})
            clients = [
                threading.Thread(target=_ask, args=(server, f"/{name}/sleep/{2 * DEADLINE_S}"))
                for name in names
            ]
            for client in clients:
                client.start()
            wait_until(lambda: [1, 1] == _stuck(tmp_path))
            for pid in child_processes(server.process.pid):
                os.kill(pid, signal.SIGKILL)
            for client in clients:
                client.join()
            wait_until(lambda: 200 == _ask(server, "/globex/"))

        assert (6, 0) == (_log(server).count("tenant.struck"), _log(server).count("tenant.parked"))


def _stuck(folder: Path) -> list[int]:
    """Return how many requests of each tenant are stuck."""
    return [sum(told["stuck"] for told in row.get("workers", [])) for row in _list(folder)]


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
def test_an_orderly_end_is_no_strike(
    server: Server, tmp_path: Path, end: Callable[[Server, Path], None]
) -> None:
    """Whatever was in flight: HUP, TERM or QUIT to the workers, `tenantry restart`."""
    old = set(_pids(server))
    asking = threading.Thread(target=_ask, args=(server, "/acme/sleep/2.0"))
    asking.start()
    end(server, tmp_path)
    wait_until(lambda: not old & set(_pids(server)) and len(_pids(server)) == 2)
    asking.join()

    assert "tenant.struck" not in _log(server)


def test_a_worker_that_has_served_enough_gets_no_strike(tmp_path: Path) -> None:
    """`max_requests` ends it with a request in flight."""
    make_hanging_site(tmp_path, acme={})
    options = ["--max-requests", "20", "--max-requests-jitter", "0"]
    with running([*COMMAND, *options], tmp_path, ready_path="/acme/") as server:
        old = set(_pids(server))
        while old & set(_pids(server)):
            _ask(server, "/acme/sleep/0.01")

        assert "tenant.struck" not in _log(server)


def _kept_to(server: Server, pid: int) -> http.client.HTTPConnection:
    """Return a connection that one worker keeps open."""
    found: list[http.client.HTTPConnection] = []

    def is_there() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
        connection.request("GET", "/globex/")
        if int(connection.getresponse().read()) == pid:
            found.append(connection)
            return True
        connection.close()
        return False

    wait_until(is_there)
    return found[0]


def test_a_worker_whose_threads_are_all_stuck_is_replaced(tmp_path: Path) -> None:
    """Who waits for a thread of it gets 503; requests of the other worker go on to their end."""
    make_hanging_site(tmp_path, acme={}, globex={})
    command = [*COMMAND, "--threads", "2"]
    with running(command, tmp_path, "/globex/", TENANTRY_DEADLINE_S="1") as server:
        wait_until(lambda: 2 == len(child_processes(server.process.pid)))
        wait_until(lambda: 200 == _ask(server, "/acme/"))
        stuck, other = child_processes(server.process.pid)
        going_on = _kept_to(server, other)
        held = [_kept_to(server, stuck) for _ in range(3)]
        going_on.request("GET", "/globex/sleep/6.0")
        for connection, path in zip(
            held, ("/acme/sleep/60.0", "/globex/sleep/60.0", "/globex/"), strict=True
        ):
            connection.request("GET", path)

        refused = held[2].getresponse()
        later = {_ask(server, "/globex/") for _ in range(9)}
        told = going_on.getresponse().status
        wait_until(lambda: stuck not in child_processes(server.process.pid))
        wait_until(lambda: 2 == len(child_processes(server.process.pid)))
        for connection in (going_on, *held):
            connection.close()

        assert (503, "1", 200) == (refused.status, refused.headers["Retry-After"], told)
        assert {200} == later - {503}
        assert 2 == _log(server).count("tenant.struck")  # a share for each
        assert "worker.given_up" in _log(server)
