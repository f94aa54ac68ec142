"""The processes that migrations run in: whoever ends one ends that one, and nobody else."""

import os
import signal
from pathlib import Path
from typing import Any, cast

import pytest

from servers import wait_until
from shops import WriteShop, first, second, write_shop_fixture
from tenantry.migrations.children import Nursery, SilentError
from tenantry.migrations.fleet_run import FleetLimits, upgrade
from tenantry.tenants.model import Tenant, parse_tenant

pytestmark = pytest.mark.live

__all__ = ["write_shop_fixture"]


def lose_the_process(nursery: Nursery) -> None:
    """Kill the process that forks, as a system without memory does."""
    process = cast("Any", nursery)._home.process
    process.kill()
    process.wait()


def test_a_child_of_a_lost_process_ends_no_other() -> None:
    """Its number may be anybody's in the process that came after: nobody there is asked."""
    with Nursery() as nursery:
        old = nursery.fork()
        lose_the_process(nursery)
        new = nursery.fork()

        assert ("in an unknown way", "SIGKILL") == (old.kill(), new.kill())


def test_a_process_that_cannot_be_started_is_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the system says against it, whoever wanted one is told, and nobody else."""
    monkeypatch.setattr("tenantry.migrations.children.python_executable", lambda: "/nowhere")
    with Nursery() as nursery:
        nursery.start(["sqlite"])

        with pytest.raises(SilentError):
            nursery.fork()


def test_a_child_is_ended_once() -> None:
    """Ended again, when its number may be another's, it ends nobody."""
    with Nursery() as nursery:
        one, other = nursery.fork(), nursery.fork()

        assert ("SIGKILL", "in an unknown way", "SIGKILL") == (one.kill(), one.kill(), other.kill())


def test_how_a_child_ended_is_known_to_who_ignores_children() -> None:
    """A supervisor that ignores SIGCHLD hands that on: numbers would be free at once."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with Nursery() as nursery:
            assert "SIGKILL" == nursery.fork().kill()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_what_a_migration_started_ends_with_it(
    write_shop: WriteShop, data_dir: Path, tmp_path: Path
) -> None:
    """Even if the process is gone that would have ended both; the next database gets a new one."""
    begun = tmp_path / "begun"
    body = f"""\
if name.startswith("acme"):
    import subprocess
    print(subprocess.Popen(["sleep", "100"]).pid, file=open({str(begun)!r}, "w"), flush=True)
    os.kill(os.getppid(), 9)
    time.sleep(1000)
"""
    endpoint = write_shop(first(), second(body))
    fleet: list[Tenant] = [
        parse_tenant(name, {"SECRET_KEY": name * 32, "BLUEPRINTS": [endpoint]}, data_dir=data_dir)
        for name in ("acme", "globex")
    ]

    outcomes = upgrade(fleet, data_dir, FleetLimits(1, timeout_s=5)).outcomes
    started = int(begun.read_text())

    assert ["failed", "upgraded"] == [one.state for one in outcomes]
    wait_until(lambda: not _is_running(started))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" != Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
