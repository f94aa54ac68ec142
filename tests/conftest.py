"""Defines fixtures for all tests, such as a tenants folder, real servers and a leak detector."""

import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from flask.globals import _cv_app
from werkzeug.test import Client

import postgres
from commands import Tenantry, command_runner
from servers import DEADLINE_S, Server, running
from tenantry.host import Host
from tenantry.http.request_record import current_request
from tenantry.reload import workers
from tenantry.settings import HostSettings

KEY = "0123456789abcdef0123456789abcdef"


def tenant_text(name: str = "acme", **keys: object) -> str:
    """Return the text of a valid tenant file.

    Each keyword argument replaces the default value of a key, or removes the key if the value is
    None.
    """
    values: dict[str, object] = {"SECRET_KEY": f"{name}-{KEY}", "BLUEPRINTS": ["landing"]} | keys
    return "".join(f"{key} = {value!r}\n" for key, value in values.items() if value is not None)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Unless live tests are selected, skip files that contain only live tests.

    Skipping a file saves 0.1 s.
    """
    is_out = config.getoption("markexpr") == "not live" and collection_path.suffix == ".py"
    return (is_out and "\npytestmark = pytest.mark.live\n" in collection_path.read_text()) or None


def pytest_collection_finish() -> None:
    """Exclude imported objects from the leak detector's garbage collections.

    Excluding these objects saves 70 ms per test.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_tenantry_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the `TENANTRY_` variables of the shell that runs the tests."""
    for name in list(os.environ):
        if name.startswith("TENANTRY_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _own_log_context() -> Iterator[None]:
    """Clear the context of a request after a test that calls a WSGI layer directly.

    In a host, `Containment` gives each request its own logging context.
    """
    yield
    structlog.contextvars.clear_contextvars()
    current_request.set(None)


@pytest.fixture(autouse=True)
def _own_umask() -> Iterator[None]:
    """Restore the umask after a test that runs a command, which creates private files."""
    mask = os.umask(0o022)
    os.umask(mask)
    yield
    os.umask(mask)


@pytest.fixture(autouse=True)
def _leak_detector() -> Iterator[None]:
    """Fail a test that leaves a context, thread, file descriptor or private module behind."""
    gc.collect()  # free the objects that earlier tests left behind
    # Freeze the other objects, which outlive the test, so that later collections skip them.
    gc.freeze()
    before = _resources()
    yield
    deadline = time.monotonic() + DEADLINE_S
    while _is_more(after := _resources(), before) and time.monotonic() < deadline:
        gc.collect()
        # A stopped server may have a thread or a socket for another moment, so wait for its end.
        threading.Event().wait(0.01)
    assert _cv_app.get(None) is None, "a test left a Flask context pushed"
    assert not _is_more(after, before), (
        f"{before} → {after}: a test left threads, file descriptors or private modules behind"
    )


def _resources() -> tuple[int, int, int]:
    # Copy the names in one step, because threads can add and remove names at any time.
    private = "\n".join(sys.modules).count("@")
    return (threading.active_count(), len(list(Path("/proc/self/fd").iterdir())), private)


def _is_more(after: tuple[int, ...], before: tuple[int, ...]) -> bool:
    return any(now > then for now, then in zip(after, before, strict=True))


@pytest.fixture(name="data_dir")
def _data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty data folder, to which `TENANTRY_DATA_DIR` points."""
    folder = tmp_path / "instance"
    monkeypatch.setenv("TENANTRY_DATA_DIR", str(folder))
    return folder


@pytest.fixture(name="tenants_dir")
def _tenants_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty tenants folder, to which `TENANTRY_TENANTS_DIR` points."""
    folder = tmp_path / "tenants"
    folder.mkdir()
    monkeypatch.setenv("TENANTRY_TENANTS_DIR", str(folder))
    return folder


@pytest.fixture(name="corp")
def _corp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder on the import path, where tests write endpoints of the package `corp`."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "corp"]:
        del sys.modules[name]


@pytest.fixture(name="settings")
def _settings(tenants_dir: Path, data_dir: Path) -> HostSettings:
    """Return the settings of a host that uses the test's tenants folder and data folder."""
    return HostSettings(tenants_dir=tenants_dir, data_dir=data_dir)


@pytest.fixture(name="write_tenant")
def _write_tenant(tenants_dir: Path) -> Callable[..., Path]:
    """Return a function that writes a tenant file: `write_tenant("acme", URL_PREFIX="/a")`."""

    def write(name: str, text: str | None = None, **keys: object) -> Path:
        path = tenants_dir / f"{name}.py"
        path.write_text(tenant_text(name, **keys) if text is None else text, encoding="utf-8")
        return path

    return write


@pytest.fixture(name="tenantry")
def _tenantry(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Tenantry]:
    """Return a function that runs a command in the parent of the tenants and data folders."""
    monkeypatch.chdir(tmp_path)
    with command_runner(capfd) as run:
        yield run


@pytest.fixture(name="acme")
def _acme(write_tenant: Callable[..., Path], data_dir: Path) -> Path:
    """Write a valid tenant file `acme.py`, and return its path."""
    del data_dir
    return write_tenant("acme", APP_NAME="Acme Ltd", MAIL_PASSWORD="hunter2")


@pytest.fixture(name="write_endpoint")
def _write_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], str]]:
    """Return a function that writes an endpoint's blueprint and returns the import name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> str:
        package = tmp_path / "extra" / name
        package.mkdir(parents=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "blueprint.py").write_text(text)
        return f"extra.{name}"

    yield write
    sys.modules.pop("extra", None)  # the process keeps the parent package of endpoints


@pytest.fixture(name="host")
def _host(settings: HostSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Return a host that has not read the tenants folder yet. The fixture closes the host.

    The host uses one loader process instead of four, which saves 30 ms.
    """
    monkeypatch.setattr(workers, "MAX_VALIDATIONS", 1)
    host = Host(settings)
    yield host
    host.close()


@pytest.fixture(name="client")
def _client(host: Host) -> Client:
    """Return a WSGI test client for the fixture `host`."""
    return Client(host)


@pytest.fixture(name="start_server")
def _start_server(
    tmp_path: Path,
    tenants_dir: Path,
    data_dir: Path,
) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server with the test's tenants folder and data folder."""
    folders = {"TENANTRY_TENANTS_DIR": str(tenants_dir), "TENANTRY_DATA_DIR": str(data_dir)}
    with contextlib.ExitStack() as servers:

        def start(command: list[str], **environ: str) -> Server:
            return servers.enter_context(running(command, tmp_path, **folders | environ))

        yield start


@pytest.fixture(scope="session", name="postgres_server")
def _postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[postgres.Postgres]:
    """Return a PostgreSQL server that all processes of this test run share.

    A test must request `postgres_server` or `postgres_url` as an argument. To the leak detector,
    files of a server that starts during the test look like a leak.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with postgres.shared(folder) as server:
        yield server


@pytest.fixture(name="postgres_url")
def _postgres_url(postgres_server: postgres.Postgres) -> str:
    """Return the URL of an empty PostgreSQL database."""
    return postgres_server.new_database()
