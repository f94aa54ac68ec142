"""`tenantry restart` refuses if a tenant would fail, and gives up if a worker does not start.

In these tests, the test process acts as a gunicorn worker.
"""

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tenantry.cli.restart import _find_lost_tenants, restart
from tenantry.errors import TenantryError
from tenantry.host import Host
from tenantry.observability.control_socket import ControlSocket, read_workers
from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import scan_tenants
from tenantry.tenants.last_good import LastGood

pytestmark = pytest.mark.live

MASTER = 1 << 22
"""A process ID that no process can have, because it is above the maximum of Linux."""


@pytest.fixture(name="signals")
def _signals(monkeypatch: pytest.MonkeyPatch) -> list[signal.Signals]:
    """Return the signals that `tenantry restart` sends to gunicorn's master.

    The timeout of each step is 0 s, so the tests do not wait.
    """
    sent: list[signal.Signals] = []
    monkeypatch.setattr(
        "tenantry.server.rolling_restart._send", lambda _, number: sent.append(number)
    )
    monkeypatch.setattr("tenantry.cli.restart.check_new_code", lambda: None)
    monkeypatch.setattr("tenantry.server.rolling_restart.STEP_TIMEOUT_S", 0.0)
    return sent


@pytest.fixture(name="endpoint")
def _endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the package of a working endpoint, `shop.orders`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "shop/orders"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").write_text("")
    code = "from flask import Blueprint\norders_bp = Blueprint('orders', __name__)\n"
    (folder / "blueprint.py").write_text(code)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


@pytest.fixture(name="serving")
def _serving(
    write_tenant: Callable[..., Path],
    settings: HostSettings,
    host: Host,
    endpoint: Path,
) -> Iterator[None]:
    """Serve acme with the endpoint `shop.orders`.

    The test process answers like a gunicorn worker.
    """
    del endpoint
    write_tenant("acme", BLUEPRINTS=["shop.orders"])
    host.load()
    gunicorn = {"master": MASTER, "server": "gunicorn"}
    control = ControlSocket(settings.data_dir, {"list": lambda: host.report.listing() | gunicorn})
    yield
    control.close()


@pytest.mark.usefixtures("serving")
def test_code_that_cannot_build_a_tenant_is_refused(
    settings: HostSettings, signals: list[signal.Signals], endpoint: Path
) -> None:
    """If new code cannot build a tenant, `tenantry restart` reports that and starts no worker."""
    (endpoint / "blueprint.py").write_text("raise RuntimeError('half a release')\n")

    with pytest.raises(TenantryError, match=r"acme would fail: .*half a release") as refused:
        restart(settings)

    assert ([], True) == (signals, "nothing was restarted" in str(refused.value))


@pytest.mark.usefixtures("serving")
def test_a_stale_tenant_would_be_lost(
    settings: HostSettings, signals: list[signal.Signals], write_tenant: Callable[..., Path]
) -> None:
    """`tenantry restart` refuses if a served tenant's file is broken."""
    write_tenant("acme", SECRET_KEY="short")

    with pytest.raises(TenantryError, match=r"acme would fail: .*SECRET_KEY"):
        restart(settings)

    assert [] == signals


@pytest.mark.usefixtures("serving")
def test_a_stale_tenant_with_a_last_good_version_is_not_lost(
    settings: HostSettings, host: Host, write_tenant: Callable[..., Path]
) -> None:
    """The new workers serve the last good version, so `tenantry restart` does not refuse."""
    record = LastGood(settings.data_dir, settings.tenants_dir)
    record.open()
    [tenant] = [mount.tenant for mount in host.router.mounts if mount.tenant is not None]
    record.note_built(tenant)
    record.save()
    write_tenant("acme", SECRET_KEY="short")

    assert [] == _find_lost_tenants(
        settings, read_workers(settings.data_dir), scan_tenants(settings)
    )


@pytest.mark.usefixtures("serving")
def test_force_restarts_although_a_tenant_is_lost(
    settings: HostSettings, signals: list[signal.Signals], write_tenant: Callable[..., Path]
) -> None:
    """`tenantry restart --force` starts a new worker even if a tenant's file is broken."""
    write_tenant("acme", SECRET_KEY="short")

    with pytest.raises(TenantryError, match="s for a new worker"):
        restart(settings, is_forced=True)

    assert signal.SIGTTIN == signals[0]


@pytest.mark.usefixtures("serving")
def test_a_tenant_that_does_not_serve_cannot_be_lost(
    settings: HostSettings, signals: list[signal.Signals], write_tenant: Callable[..., Path]
) -> None:
    """A broken tenant file that no worker serves does not prevent `tenantry restart`."""
    write_tenant("broken", text="SECRET_KEY = ")

    with pytest.raises(TenantryError, match="s for a new worker"):
        restart(settings)

    assert signal.SIGTTIN == signals[0]


@pytest.mark.usefixtures("serving")
def test_a_missing_folder_is_refused(settings: HostSettings, signals: list[signal.Signals]) -> None:
    """`tenantry restart` refuses if the tenants folder is missing."""
    shutil.rmtree(settings.tenants_dir)

    with pytest.raises(TenantryError, match="cannot read the folder"):
        restart(settings)

    assert [] == signals


@pytest.mark.usefixtures("serving")
def test_a_worker_that_does_not_start_is_taken_back(
    settings: HostSettings, signals: list[signal.Signals]
) -> None:
    """If a new worker does not start, `tenantry restart` restores the old number of workers."""
    with pytest.raises(TenantryError, match="s for a new worker"):
        restart(settings)

    assert [signal.SIGTTIN, signal.SIGTTOU] == signals


def test_another_server_is_not_signalled(
    settings: HostSettings, signals: list[signal.Signals], host: Host
) -> None:
    """Under servers other than gunicorn, `tenantry restart` fails and sends no signal."""
    control = ControlSocket(settings.data_dir, {"list": host.report.listing})

    with pytest.raises(TenantryError, match="needs gunicorn"):
        restart(settings)
    control.close()

    assert [] == signals
