"""Operators' commands work with a running host."""

import contextlib
import hashlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import Result
from conftest import tenant_text
from servers import CONFIG_FILE, Server, running, wait_until
from tenantry.cli import main
from tenantry.cli.list import serving_rows
from tenantry.observability.control_socket import read_workers
from tenantry.reload.convergence import wait_for_workers
from tenantry.settings import HostSettings
from tenantry.tenants.operator_state import DEFAULT_OPERATOR_STATE, write_operator_state

pytestmark = pytest.mark.live


class Site:
    """A folder with tenants, in which an operator runs commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tenants = folder / "tenants"
        self.data = folder / "instance"

    def write(self, name: str, **keys: object) -> None:
        """Write a tenant file in one step."""
        unfinished = self.tenants / f".{name}"
        unfinished.write_text(tenant_text(name, **keys))
        unfinished.replace(self.tenants / f"{name}.py")

    def run(self, *words: str) -> Result:
        """Run a `tenantry` command in the folder, without starting a process."""
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            for name in [name for name in os.environ if name.startswith("TENANTRY_")]:
                patch.delenv(name)
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["tenantry", *words])
            patch.setattr(sys, "path", list(sys.path))
            with pytest.raises(SystemExit) as ended:
                main()
        return Result(int(ended.value.code or 0), out.getvalue(), err.getvalue())

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the rows of `list --json` by name."""
        return {row["name"]: row for row in serving_rows(read_workers(self.data))}

    def reports(self, name: str, field: str) -> list[Any]:
        """Return one field of what each worker reports about a tenant."""
        workers = self.rows()[name]["workers"]
        assert len(workers) == 2
        return [report[field] for report in workers]

    def digest(self, name: str) -> str:
        """Return the digest of a tenant file."""
        return hashlib.sha256((self.tenants / f"{name}.py").read_bytes()).hexdigest()

    def settle(self) -> None:
        """Undo what a test changed, and wait until the host follows."""
        for name in ("acme", "globex"):
            self.write(name)
            write_operator_state(self.data, name, DEFAULT_OPERATOR_STATE)
        settings = HostSettings(tenants_dir=self.tenants, data_dir=self.data)
        wait_until(lambda: not wait_for_workers(settings))


@pytest.fixture(name="site", scope="module")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Return a folder with the tenants acme and globex."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.tenants.mkdir()
    for name in ("acme", "globex"):
        site.write(name)
    return site


@pytest.fixture(name="server", scope="module")
def _server(site: Site) -> Iterator[Server]:
    """Serve the folder with two workers."""
    command = ["gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--workers", "2"]
    with running(command, site.folder) as server:
        wait_until(lambda: len(read_workers(site.data)) == 2)
        yield server


@pytest.fixture(autouse=True)
def _restore(site: Site, server: Server) -> Iterator[None]:
    """Undo what a test changed, and wait until the host follows."""
    del server
    yield
    site.settle()


def _wait_for_states(site: Site, *states: str) -> None:
    """Wait until every worker reports one of the states for the tenant acme."""
    wait_until(lambda: set(site.reports("acme", "state")) <= {*states})


def test_list_shows_each_worker(site: Site) -> None:
    """`tenantry list --json` shows what each worker reports about a tenant."""
    keys = {"pid", "state", "since", "digest", "reason", "database", "stuck"}

    assert [keys] * 2 == [set(report) for report in site.rows()["acme"]["workers"]]


def test_each_worker_logs_when_it_has_evaluated_every_tenant(server: Server) -> None:
    """The line `worker.ready` has the number of tenants, and the number in each state."""

    def lines() -> list[str]:
        return [one for one in server.log.read_text().splitlines() if "worker.ready" in one]

    wait_until(lambda: len(lines()) >= 2)

    assert all("tenants=2" in line for line in lines())


def test_list_wait_returns_when_all_workers_serve_the_folder(site: Site, server: Server) -> None:
    """When `tenantry list --wait` exits with 0, every worker serves the newest tenant files."""
    site.write("acme", MAINTENANCE=True)

    waited = site.run("list", "--wait")

    assert (0, [site.digest("acme")] * 2) == (waited.code, site.reports("acme", "digest"))
    assert 503 == server.get("/acme/")[0].status


def test_list_wait_exits_with_1_for_a_rejected_file(site: Site, server: Server) -> None:
    """If a changed tenant file is rejected, `tenantry list --wait` exits with 1."""
    server.get("/acme/")
    site.write("acme", SECRET_KEY="short")

    waited = site.run("list", "--wait")

    assert (1, 201) == (waited.code, server.get("/acme/")[0].status)
    assert waited.err.startswith("tenantry: acme: tenants/acme.py: 'SECRET_KEY': ")
    assert "stale" == site.rows()["acme"]["state"]


def test_maintenance_reaches_every_worker(site: Site, server: Server) -> None:
    """After `maintenance on`, every worker answers 503 with the message until `maintenance off`."""
    site.run("maintenance", "on", "acme", "--message", "Back at noon.")
    _wait_for_states(site, "maintenance")
    body = server.get("/acme/")[1]
    site.run("maintenance", "off", "acme")
    _wait_for_states(site, "idle", "serving")

    assert "Back at noon." == json.loads(body)["detail"]
    assert 201 == server.get("/acme/")[0].status


def test_a_disabled_tenant_is_404(site: Site, server: Server) -> None:
    """After `tenantry disable`, every worker answers 404 for the tenant, until `enable`."""
    site.run("disable", "acme")
    _wait_for_states(site, "disabled")
    status, waited = server.get("/acme/")[0].status, site.run("list", "--wait")
    site.run("enable", "acme")
    _wait_for_states(site, "idle", "serving")

    assert (404, 0) == (status, waited.code)
    assert 201 == server.get("/acme/")[0].status


def test_plan_compares_with_the_running_host(site: Site, tmp_path: Path) -> None:
    """If the tenants folder has changed, `tenantry plan` shows the changes, but no secrets."""
    changed = Site(tmp_path)
    changed.tenants.mkdir()
    changed.write("acme", URL_PREFIX="/a/b", SECRET_KEY="k" * 40, SESSION_COOKIE_NAME="s")
    changed.write("initech")
    (tmp_path / "instance").symlink_to(site.folder / "instance")

    plan = changed.run("plan")

    assert 0 == plan.code, plan.err
    lines = plan.out.splitlines()
    assert "~ acme: moves from /acme to /a/b" in lines
    assert "~ acme: SESSION_COOKIE_NAME: not set → 's'" in lines
    assert "- globex: gone from /globex" in lines
    assert "+ initech: new at /initech, endpoints landing" in lines
    assert any(line.startswith("~ acme: SECRET_KEY: ********") for line in lines)
    assert "k" * 40 not in plan.out


def test_plan_of_an_unchanged_folder_shows_no_changes(site: Site) -> None:
    """`tenantry plan` prints `No changes.` if the tenants folder has not changed."""
    plan = site.run("plan")

    assert Result(0, "No changes.\n", "") == plan


def test_plan_compares_with_a_snapshot(site: Site, tmp_path: Path) -> None:
    """`tenantry plan` with a snapshot exits with 1 on problems, and a snapshot has no secrets."""
    snapshot = tmp_path / "snapshot.json"
    site.run("plan", "--save", str(snapshot))
    site.write("globex", BLUEPRINTS=["landin"])

    plan = site.run("plan", "--against", str(snapshot))

    assert "0123456789abcdef" not in snapshot.read_text()
    assert 1 == plan.code
    assert any(line.startswith("! tenants/globex.py: ") for line in plan.out.splitlines())


def test_restart_replaces_every_worker_without_a_failed_request(site: Site, server: Server) -> None:
    """`tenantry restart` starts new workers before it stops old ones, so no request fails."""
    before = set(site.reports("acme", "pid"))
    stop = threading.Event()
    statuses: list[int] = []
    client = threading.Thread(target=_request_until, args=(stop, server, statuses))
    client.start()

    restart = site.run("restart")

    stop.set()
    client.join()
    assert (0, {201}) == (restart.code, set(statuses))
    assert set() == before.intersection(site.reports("acme", "pid"))


def _request_until(stop: threading.Event, server: Server, statuses: list[int]) -> None:
    while not stop.is_set():
        statuses.append(server.get("/globex/")[0].status)


def test_restart_builds_active_tenants_in_new_workers(site: Site, server: Server) -> None:
    """After `tenantry restart`, new workers build active tenants before the first request."""
    server.get("/acme/")

    site.run("restart")

    assert ["serving"] * 2 == site.reports("acme", "state")


@pytest.mark.usefixtures("server")
def test_restart_does_nothing_if_the_code_cannot_be_imported(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If new code cannot be imported, `tenantry restart` prints the reason and starts no worker."""
    before = [worker.pid for worker in read_workers(site.data)]
    (tmp_path / "watchfiles.py").write_text("raise RuntimeError('half a release')\n")
    monkeypatch.syspath_prepend(tmp_path)

    restart = site.run("restart")

    assert (1, 1) == (restart.code, len(restart.err.splitlines()))
    assert "RuntimeError: half a release; nothing was restarted" in restart.err
    assert before == [worker.pid for worker in read_workers(site.data)]


def test_list_wait_waits_for_a_starting_worker(site: Site, server: Server) -> None:
    """`tenantry list --wait` waits for a new worker that has no control socket yet."""
    old = {worker.pid for worker in read_workers(site.data)}
    killed = min(old)
    os.kill(killed, signal.SIGKILL)
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    wait_until(lambda: len({int(pid) for pid in children.read_text().split()} - {killed}) == 2)

    waited = site.run("list", "--wait")

    workers = {worker.pid for worker in read_workers(site.data)}
    assert (0, 2, old - {killed}) == (waited.code, len(workers), old & workers)


@pytest.mark.parametrize("words", [("list", "--wait"), ("restart",), ("plan",)])
def test_commands_about_a_running_host_need_one(
    tmp_path: Path, words: tuple[str, ...], write_tenant: Callable[..., Path]
) -> None:
    """`list --wait`, `restart` and `plan` print one line and exit with 1 if no host is running."""
    write_tenant("acme")

    result = Site(tmp_path).run(*words)

    assert (1, 1) == (result.code, len(result.err.splitlines()))
    assert "no host is running" in result.err
