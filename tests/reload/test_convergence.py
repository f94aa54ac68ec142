"""`tenantry list --wait` waits for all workers. In these tests, the test process is the worker."""

import contextlib
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servers import wait_until
from tenantry.cli.operator_state import change_tenant_state
from tenantry.errors import TenantryError
from tenantry.host import Host
from tenantry.observability.control_socket import ControlSocket, workers_folder
from tenantry.reload.convergence import wait_for_workers
from tenantry.settings import HostSettings

pytestmark = pytest.mark.live


@pytest.fixture(name="serving")
def _serving(
    write_tenant: Callable[..., Path],
    settings: HostSettings,
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Host]:
    """Serve acme in the test process, which follows the tenants folder one step at a time."""
    monkeypatch.setattr("tenantry.reload.convergence.WAIT_TIMEOUT_S", 0.0)
    # processes of a parallel test run would look like starting workers
    monkeypatch.setattr("tenantry.reload.convergence.starting_workers", lambda _: set())
    monkeypatch.chdir(settings.tenants_dir.parent)
    write_tenant("acme")
    host.load()
    control = ControlSocket(settings.data_dir, {"list": host.report.listing})
    yield host
    control.close()


def _settle(host: Host, settings: HostSettings) -> dict[str, str]:
    """Let the host follow the folder. Return the tenants that the host does not serve."""
    ended: list[dict[str, str]] = []

    def has_ended() -> bool:
        host.follower.step()
        with contextlib.suppress(TenantryError):
            ended.append(wait_for_workers(settings))
        return bool(ended)

    wait_until(has_ended)
    return ended[-1]


@pytest.mark.usefixtures("serving")
def test_every_tenant_is_served(settings: HostSettings) -> None:
    """If every worker serves the newest tenant files, `tenantry list --wait` reports no tenant."""
    assert {} == wait_for_workers(settings)


@pytest.mark.usefixtures("serving")
def test_a_missing_folder_is_an_error(settings: HostSettings) -> None:
    """If the tenants folder is missing, the error of `tenantry list --wait` names the folder."""
    shutil.rmtree(settings.tenants_dir)

    with pytest.raises(TenantryError, match="cannot read the folder"):
        wait_for_workers(settings)


def test_maintenance_hides_no_broken_file(
    serving: Host, settings: HostSettings, write_tenant: Callable[..., Path]
) -> None:
    """`tenantry list --wait` reports a broken tenant file even if the tenant is in maintenance."""
    change_tenant_state("acme", maintenance=True)
    write_tenant("acme", SECRET_KEY="short")

    unserved = _settle(serving, settings)

    assert ("maintenance", ["acme"]) == (serving.router.mounts[0].state, [*unserved])
    assert unserved["acme"].startswith("tenants/acme.py: 'SECRET_KEY': ")


@pytest.mark.usefixtures("serving")
def test_a_worker_that_does_not_answer_is_waited_for(
    settings: HostSettings, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tenantry list --wait` waits for a worker whose control socket does not answer yet."""
    monkeypatch.setattr("tenantry.observability.control_socket.ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.chdir(workers_folder(data_dir))
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind("1.sock")
        silent.listen()

        with pytest.raises(TenantryError, match="worker 1 does not answer"):
            wait_for_workers(settings)


@pytest.mark.parametrize("changes", [{"is_disabled": True}, {"maintenance": "Back at noon."}])
def test_operator_state_is_waited_for(
    serving: Host, settings: HostSettings, changes: dict[str, Any]
) -> None:
    """`tenantry list --wait` waits until workers have applied a change of the operator state."""
    ended = []
    for values in (changes, dict.fromkeys(changes, False)):
        change_tenant_state("acme", **values)
        with pytest.raises(TenantryError, match="a worker is still behind"):
            wait_for_workers(settings)
        ended.append(_settle(serving, settings))

    assert [{}, {}] == ended
