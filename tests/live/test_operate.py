"""What operators do with a running host: list, wait, maintenance, disable, plan, restart."""

import contextlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import tenant_text
from servers import CONFIG_FILE, Server, running, wait_until
from tenantry.cli import main
from tenantry.cli.list import serving_rows, wait_for_workers
from tenantry.observability.control_socket import read_workers
from tenantry.settings import HostSettings
from tenantry.tenants.operator_state import DEFAULT_OPERATOR_STATE, write_operator_state

pytestmark = pytest.mark.live


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


class Site:
    """A folder with tenants, the host that serves it, and the commands of its operator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tenants = folder / "tenants"
        self.data = folder / "instance"

    def write(self, name: str, **keys: object) -> None:
        """Write a tenant file, whole or not at all."""
        unfinished = self.tenants / f".{name}"
        unfinished.write_text(tenant_text(name, **keys))
        unfinished.replace(self.tenants / f"{name}.py")

    def run(self, *words: str) -> Result:
        """Run a command of `tenantry` in the folder, in this process."""
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

    def rows(self) -> dict[str, dict[str, object]]:
        """Return what `list --json` prints, by name."""
        return {row["name"]: row for row in serving_rows(read_workers(self.data))}

    def settle(self) -> None:
        """Undo what a test changed, and wait until the host follows."""
        for name in ("acme", "globex"):
            self.write(name)
            write_operator_state(self.data, name, DEFAULT_OPERATOR_STATE)
        settings = HostSettings(tenants_dir=self.tenants, data_dir=self.data)
        wait_until(lambda: not wait_for_workers(settings))


@pytest.fixture(name="site", scope="module")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Return a folder with tenants acme and globex."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.tenants.mkdir()
    for name in ("acme", "globex"):
        site.write(name)
    return site


@pytest.fixture(name="server", scope="module")
def _server(site: Site) -> Iterator[Server]:
    """Serve the site with two workers."""
    command = ["gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--workers", "2"]
    with running(command, site.folder) as server:
        wait_until(lambda: len(read_workers(site.data)) == 2)
        yield server


@pytest.fixture(autouse=True)
def _as_it_was(site: Site, server: Server) -> Iterator[None]:
    """Undo what a test changed, and wait until the host follows."""
    del server
    yield
    site.settle()


def _becomes(server: Server, path: str, status: int) -> None:
    """Wait until both workers answer with `status`: ten answers in a row."""
    wait_until(lambda: {server.get(path)[0].status for _ in range(10)} == {status})


def test_list_shows_each_worker(site: Site) -> None:
    """`list --json` has each worker's state of a tenant, since when, and the content's hash."""
    workers = site.rows()["acme"]["workers"]
    keys = {"pid", "state", "since", "digest", "reason", "database", "stuck"}

    assert isinstance(workers, list)
    assert [keys] * 2 == [set(one) for one in workers]


def test_wait_returns_when_all_serve_the_folder(site: Site, server: Server) -> None:
    """After `list --wait` every worker serves the new content, exit 0."""
    site.write("acme", MAINTENANCE=True)

    waited = site.run("list", "--wait")

    answers = {server.get("/acme/")[0].status for _ in range(10)}
    assert (0, {503}) == (waited.code, answers)


def test_wait_ends_with_1_when_they_cannot(site: Site, server: Server) -> None:
    """A rejected file keeps the old version serving, and `list --wait` ends with 1."""
    server.get("/acme/")
    site.write("acme", SECRET_KEY="short")

    waited = site.run("list", "--wait")

    assert (1, 201) == (waited.code, server.get("/acme/")[0].status)
    assert waited.err.startswith("tenantry: acme: tenants/acme.py: 'SECRET_KEY': ")
    assert "stale" == site.rows()["acme"]["state"]


def test_maintenance_reaches_every_worker(site: Site, server: Server) -> None:
    """`maintenance on` with a message is what clients of all workers get, until it is off."""
    site.run("maintenance", "on", "acme", "--message", "Back at noon.")
    _becomes(server, "/acme/", 503)
    body = server.get("/acme/")[1]
    site.run("maintenance", "off", "acme")
    _becomes(server, "/acme/", 201)

    assert "Back at noon." == json.loads(body)["detail"]


def test_a_disabled_tenant_is_not_there(site: Site, server: Server) -> None:
    """`disable` makes a prefix 404 in every worker, `list` says so, and `enable` undoes it."""
    site.run("disable", "acme")
    _becomes(server, "/acme/", 404)
    state, waited = site.rows()["acme"]["state"], site.run("list", "--wait")
    site.run("enable", "acme")
    _becomes(server, "/acme/", 201)

    assert ("disabled", 0) == (state, waited.code)


def test_plan_against_what_serves(site: Site, tmp_path: Path) -> None:
    """`plan` in a changed folder says what would change, and no secret."""
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


def test_plan_of_an_unchanged_folder_is_empty(site: Site) -> None:
    """Nothing to do is nothing printed, exit 0."""
    plan = site.run("plan")

    assert (0, "", "") == (plan.code, plan.out, plan.err)


def test_plan_against_a_snapshot(site: Site, tmp_path: Path) -> None:
    """A saved snapshot holds no secret, and a plan against it names what is wrong, exit 1."""
    snapshot = tmp_path / "snapshot.json"
    site.run("plan", "--save", str(snapshot))
    site.write("globex", BLUEPRINTS=["landin"])

    plan = site.run("plan", "--against", str(snapshot))

    assert "0123456789abcdef" not in snapshot.read_text()
    assert 1 == plan.code
    assert any(line.startswith("! tenants/globex.py: ") for line in plan.out.splitlines())


def test_restart_replaces_every_worker_without_a_failed_request(site: Site, server: Server) -> None:
    """New workers are up before the old ones go: all requests meanwhile are answered."""
    workers = site.rows()["acme"]["workers"]
    assert isinstance(workers, list)
    before = {worker["pid"] for worker in workers}
    is_over = threading.Event()
    statuses: list[int] = []
    client = threading.Thread(target=_ask_until, args=(is_over, server, statuses))
    client.start()

    restart = site.run("restart")

    is_over.set()
    client.join()
    workers = site.rows()["acme"]["workers"]
    assert isinstance(workers, list)
    assert (0, {201}) == (restart.code, set(statuses))
    assert (2, set()) == (len(workers), before & {worker["pid"] for worker in workers})


def _ask_until(is_over: threading.Event, server: Server, statuses: list[int]) -> None:
    while not is_over.is_set():
        statuses.append(server.get("/globex/")[0].status)


def test_restart_wakes_what_was_awake(site: Site, server: Server) -> None:
    """A tenant that one worker had built is built in every new one, before its first request."""
    server.get("/acme/")

    site.run("restart")

    workers = site.rows()["acme"]["workers"]
    assert isinstance(workers, list)
    assert ["serving"] * 2 == [worker["state"] for worker in workers]


@pytest.mark.usefixtures("server")
def test_restart_with_code_that_cannot_be_imported_touches_nothing(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says why; with such code, gunicorn ends with all its workers."""
    before = [worker.pid for worker in read_workers(site.data)]
    (tmp_path / "watchfiles.py").write_text("raise RuntimeError('half a release')\n")
    monkeypatch.syspath_prepend(tmp_path)

    restart = site.run("restart")

    assert (1, 1) == (restart.code, len(restart.err.splitlines()))
    assert "RuntimeError: half a release; nothing was restarted" in restart.err
    assert before == [worker.pid for worker in read_workers(site.data)]


def test_wait_waits_for_a_worker_that_is_being_started(site: Site, server: Server) -> None:
    """One that has replaced a killed one, and has not opened its socket yet, is waited for."""
    old = {worker.pid for worker in read_workers(site.data)}
    killed = min(old)
    os.kill(killed, signal.SIGKILL)
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    wait_until(lambda: len({int(pid) for pid in children.read_text().split()} - {killed}) == 2)

    waited = site.run("list", "--wait")

    workers = {worker.pid for worker in read_workers(site.data)}
    assert (0, 2, old - {killed}) == (waited.code, len(workers), old & workers)


@pytest.mark.parametrize("words", [("list", "--wait"), ("restart",), ("plan",)])
def test_without_a_host_it_says_so(
    tmp_path: Path, words: tuple[str, ...], write_tenant: Callable[..., Path]
) -> None:
    """Commands about a running host need one: one line, exit 1."""
    write_tenant("acme")

    result = Site(tmp_path).run(*words)

    assert (1, 1) == (result.code, len(result.err.splitlines()))
    assert "no host is running" in result.err
