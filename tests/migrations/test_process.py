"""Migrations run in a separate process, which ends together with its child processes."""

from pathlib import Path

import pytest

from servers import wait_until
from shops import WriteShop, first, second, write_shop_fixture
from tenantry.migrations.fleet_run import FleetLimits, upgrade
from tenantry.migrations.process import MigrationProcess, ProcessEndedError
from tenantry.migrations.runner import MigrationRunner, MigrationTarget
from tenantry.tenants.validation import parse_tenant

__all__ = ["write_shop_fixture"]


@pytest.mark.live
def test_a_process_is_killed_once() -> None:
    """A migration process is killed only once, because its ID may be reused afterwards."""
    process = MigrationProcess()

    assert ["SIGKILL", "SIGKILL"] == [process.close(), process.close()]


@pytest.mark.live
def test_a_process_that_ends_is_not_waited_for() -> None:
    """If the migration process has ended, its caller gets an error immediately."""
    process = MigrationProcess()
    process.kill()

    with pytest.raises(ProcessEndedError):
        process.receive(60.0)

    process.close()


def test_a_process_that_cannot_start_is_a_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If the migration process cannot start, the migration fails with the system's reason."""
    monkeypatch.setattr("tenantry.python_process.python_executable", lambda: "/nowhere")
    target = MigrationTarget("acme", "sqlite:///a.sqlite3", (), tmp_path / "lock")

    with MigrationRunner() as runner:
        result = runner.upgrade(target)

    assert "failed" == result.state
    assert result.reason.startswith("cannot start a process for its migration: ")
    assert "/nowhere" in result.reason


@pytest.mark.live
def test_what_a_migration_started_ends_with_it(
    write_shop: WriteShop, data_dir: Path, tmp_path: Path
) -> None:
    """A migration that hangs is ended with all its child processes, and the next migration runs."""
    pid_file = tmp_path / "pid"
    body = f"""\
if name.startswith("acme"):
    import subprocess
    print(subprocess.Popen(["sleep", "100"]).pid, file=open({str(pid_file)!r}, "w"), flush=True)
    time.sleep(1000)
"""
    endpoint = write_shop(first(), second(body))
    fleet = [
        parse_tenant(name, {"SECRET_KEY": name * 32, "BLUEPRINTS": [endpoint]}, data_dir=data_dir)
        for name in ("acme", "globex")
    ]

    results = upgrade(fleet, data_dir, FleetLimits(1, timeout_s=5)).results

    assert ["failed", "upgraded"] == [result.state for result in results]
    wait_until(lambda: not _is_running(int(pid_file.read_text())))


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
