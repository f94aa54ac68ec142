"""A new worker builds the tenants that other workers have already built."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_instances import make_tenant

from servers import DEADLINE_S, wait_until
from tenantry.host import Host
from tenantry.observability.control_socket import ControlSocket, workers_folder
from tenantry.reload import warm_start
from tenantry.reload.warm_start import accepted_by_siblings, build_as_siblings
from tenantry.routing.mount import Mount
from tenantry.routing.router import Router
from tenantry.settings import HostSettings
from tenantry.tenants.address import Address


@pytest.fixture(name="built_by_sibling")
def _built_by_sibling(data_dir: Path) -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Return a function that opens the control socket of another worker with built tenants."""
    sockets: list[ControlSocket] = []

    def open_socket(names: Callable[[], Any]) -> None:
        sockets.append(ControlSocket(data_dir, {"built": lambda: {"names": names()}}))

    yield open_socket
    for socket in sockets:
        socket.close()


@pytest.fixture(name="released")
def _released() -> Iterator[threading.Event]:
    """Return an event that lets waiting workers answer. Waiting threads end with the test."""
    event = threading.Event()
    yield event
    event.set()
    for thread in threading.enumerate():
        if thread.name in ("tenantry-ask", "tenantry-warm-start"):
            thread.join()


def test_a_new_worker_builds_what_its_siblings_have_built(
    host: Host,
    write_tenant: Callable[..., Path],
    built_by_sibling: Callable[..., None],
    data_dir: Path,
) -> None:
    """A new worker builds a tenant only if another worker has built it."""
    for name in ("acme", "globex"):
        write_tenant(name)
    host.load()
    built_by_sibling(lambda: ["gone", "globex"])

    build_as_siblings(data_dir, host.router)

    states = {status.name: status.state for status in host.status()}
    assert {"acme": "idle", "globex": "serving"} == states


def test_a_stopping_worker_lists_no_built_tenants(
    host: Host, write_tenant: Callable[..., Path]
) -> None:
    """A worker that is stopping lists no tenants, so a new worker starts without delay."""
    write_tenant("acme")
    host.load()
    host.router.mounts[0].ensure_instance()
    before = host.report.built()

    host.stop()

    assert [{"names": ["acme"]}, {"names": []}] == [before, host.report.built()]


def test_a_sibling_that_hangs_does_not_delay_the_start(
    monkeypatch: pytest.MonkeyPatch,
    built_by_sibling: Callable[..., None],
    released: threading.Event,
    data_dir: Path,
) -> None:
    """If another worker hangs, a new worker starts anyway."""
    monkeypatch.setattr(warm_start, "BUILD_TIMEOUT_S", 0.05)
    built_by_sibling(lambda: [released.wait(DEADLINE_S), "acme"][1:])
    built: list[str] = []
    mount = Mount("acme", "/acme", lambda tenant: built.append(tenant.name))  # type: ignore[arg-type,func-returns-value]
    mount.accept(make_tenant(data_dir))
    router = Router(lambda *_: ())
    router.replace([mount])

    build_as_siblings(data_dir, router)
    is_released = released.is_set()
    released.set()
    for thread in threading.enumerate():
        if thread.name == "tenantry-warm-start":
            thread.join()

    assert (False, []) == (is_released, built)


def test_a_new_worker_accepts_what_its_siblings_have_accepted(
    host: Host, settings: HostSettings, write_tenant: Callable[..., Path]
) -> None:
    """If two tenants claim one address, a new worker serves the tenant that other workers serve."""
    write_tenant("globex", URL_PREFIX="/shop")
    host.load()
    host._open_control_socket()
    write_tenant("acme", URL_PREFIX="/shop")
    newcomer = Host(settings)
    try:
        newcomer._follow()
        wait_until(newcomer.follower.is_ready.is_set)
        states = {status.name: status.state for status in newcomer.status()}
    finally:
        newcomer.close()

    assert {"acme": "failed", "globex": "idle"} == states


@pytest.mark.parametrize(
    ("only", "expected"), [((), {("acme", "d1", Address("/acme"))}), (("acme",), set())]
)
def test_only_siblings_that_serve_the_same_tenants_count(
    data_dir: Path, only: tuple[str, ...], expected: set[tuple[str, str, str]]
) -> None:
    """A new worker ignores workers that serve other tenants (`TENANTRY_ONLY`)."""
    answer = {"only": [], "accepted": {"acme": ["d1", "/acme"]}}
    sibling = ControlSocket(data_dir, {"accepted": lambda: answer})
    try:
        assert expected == accepted_by_siblings(data_dir, only)
    finally:
        sibling.close()


def test_a_starting_worker_lists_no_accepted_tenants(
    host: Host, write_tenant: Callable[..., Path]
) -> None:
    """A worker that is still starting lists no accepted tenants, because its choice may change."""
    write_tenant("acme")
    before = host.report.accepted()["accepted"]

    host.load()

    assert ({}, ["acme"]) == (before, list(host.report.accepted()["accepted"]))


def test_without_an_answer_no_tenant_is_preferred(
    monkeypatch: pytest.MonkeyPatch, released: threading.Event, data_dir: Path
) -> None:
    """If no other worker answers in time, a new worker starts anyway."""
    monkeypatch.setattr(warm_start, "ACCEPTED_TIMEOUT_S", 0.02)
    hanging = ControlSocket(
        data_dir, {"accepted": lambda: released.wait() and {"only": [], "accepted": {}}}
    )

    accepted = accepted_by_siblings(data_dir)

    released.set()
    hanging.close()
    assert frozenset() == accepted


def test_one_sibling_that_hangs_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, released: threading.Event, data_dir: Path
) -> None:
    """If one worker hangs, a new worker still uses the answers of the other workers."""
    monkeypatch.setattr(warm_start, "ACCEPTED_ANSWER_TIMEOUT_S", 0.02)
    monkeypatch.setattr(warm_start, "ACCEPTED_TIMEOUT_S", DEADLINE_S)
    hanging = ControlSocket(
        data_dir, {"accepted": lambda: released.wait() and {"only": [], "accepted": {}}}
    )
    path = workers_folder(data_dir)
    next(path.glob("*.sock")).rename(path / "1.sock")
    answering = ControlSocket(
        data_dir, {"accepted": lambda: {"only": [], "accepted": {"acme": ["d1", "/acme"]}}}
    )

    accepted = accepted_by_siblings(data_dir)

    released.set()
    hanging.close()
    answering.close()
    assert {("acme", "d1", Address("/acme"))} == accepted
