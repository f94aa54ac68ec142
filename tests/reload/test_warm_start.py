"""A new worker has awake what its siblings have."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servers import DEADLINE_S, wait_until
from tenantry.host import Host
from tenantry.observability.control_socket import ControlSocket, workers_folder
from tenantry.reload import warm_start
from tenantry.reload.warm_start import accepted_by_siblings, wake_as_siblings
from tenantry.routing.router import Router
from tenantry.settings import HostSettings


@pytest.fixture(name="sibling")
def _sibling(data_dir: Path) -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Return what opens a socket that tells who is awake; closed after the test."""
    opened: list[ControlSocket] = []

    def tell(names: Callable[[], Any]) -> None:
        opened.append(ControlSocket(data_dir, {"awake": lambda: {"names": names()}}))

    yield tell
    for each in opened:
        each.close()


def test_the_awake_of_the_siblings_are_awake_here(
    host: Host, write_tenant: Callable[..., Path], sibling: Callable[..., None], data_dir: Path
) -> None:
    """And nobody else; a name that is not known here is no matter."""
    for name in ("acme", "globex"):
        write_tenant(name)
    host.load()
    sibling(lambda: ["gone", "globex"])

    wake_as_siblings(data_dir, lambda: host.router)

    assert {"acme": "idle", "globex": "serving"} == {one.name: one.state for one in host.status()}


def test_a_stopping_process_is_no_sibling(host: Host, write_tenant: Callable[..., Path]) -> None:
    """Nobody waits for builds while there is no worker left that accepts connections."""
    write_tenant("acme")
    host.load()
    host.router.mounts[0].ensure_instance()
    before = host.report.awake()

    host.stop()

    assert [{"names": ["acme"]}, {"names": []}] == [before, host.report.awake()]


def test_a_sibling_that_hangs_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, sibling: Callable[..., None], data_dir: Path
) -> None:
    """The start goes on after `WARM_S`, and nothing more is built then."""
    monkeypatch.setattr(warm_start, "WARM_S", 0.05)
    is_over = threading.Event()
    asked: list[str] = []
    sibling(lambda: [is_over.wait(), "acme"][1:])

    def mounts() -> Router:
        asked.append("asked")
        return Router(lambda *_: ())

    wake_as_siblings(data_dir, mounts)
    was_asked = list(asked)
    is_over.set()
    for thread in threading.enumerate():
        if thread.name == "tenantry-warm":
            thread.join()

    assert ([], ["asked"]) == (was_asked, asked)


@pytest.fixture(name="asking")
def _asking() -> Iterator[threading.Event]:
    """Return what lets siblings that hang answer; whoever asks them has ended after the test."""
    event = threading.Event()
    yield event
    event.set()
    for thread in threading.enumerate():
        if thread.name == "tenantry-ask":
            thread.join()


def test_a_new_worker_keeps_the_owner_that_its_siblings_have(
    host: Host, settings: HostSettings, write_tenant: Callable[..., Path]
) -> None:
    """A newcomer that they refused is refused here too, though its name comes first."""
    write_tenant("globex", URL_PREFIX="/shop")
    host.load()
    host._open_control_socket()
    write_tenant("acme", URL_PREFIX="/shop")
    newcomer = Host(settings)
    try:
        newcomer._follow()
        wait_until(newcomer.follower.is_ready.is_set)
        states = {one.name: one.state for one in newcomer.status()}
    finally:
        newcomer.close()

    assert {"acme": "failed", "globex": "idle"} == states


@pytest.mark.parametrize(("only", "expected"), [((), {("acme", "d1")}), (("acme",), set())])
def test_only_hosts_of_the_same_tenants_tell_whom_they_accepted(
    data_dir: Path, only: tuple[str, ...], expected: set[tuple[str, str]]
) -> None:
    """To a host that serves chosen tenants it is as if the others were not there."""
    answer = {"only": [], "accepted": {"acme": "d1"}}
    sibling = ControlSocket(data_dir, {"accepted": lambda: answer})
    try:
        assert expected == accepted_by_siblings(data_dir, only)
    finally:
        sibling.close()


def test_a_worker_that_starts_tells_nothing_yet(
    host: Host, write_tenant: Callable[..., Path]
) -> None:
    """Whom it has accepted may yet be displaced."""
    write_tenant("acme")
    before = host.report.accepted()["accepted"]

    host.load()

    assert ({}, ["acme"]) == (before, list(host.report.accepted()["accepted"]))


def test_a_start_does_not_wait_for_siblings_that_hang(
    monkeypatch: pytest.MonkeyPatch, asking: threading.Event, data_dir: Path
) -> None:
    """Nobody is preferred then."""
    monkeypatch.setattr(warm_start, "ACCEPTED_S", 0.02)
    hanging = ControlSocket(
        data_dir, {"accepted": lambda: asking.wait() and {"only": [], "accepted": {}}}
    )

    accepted = accepted_by_siblings(data_dir)

    asking.set()
    hanging.close()
    assert frozenset() == accepted


def test_one_sibling_that_hangs_does_not_silence_the_others(
    monkeypatch: pytest.MonkeyPatch, asking: threading.Event, data_dir: Path
) -> None:
    """Each is asked for a short time only."""
    monkeypatch.setattr(warm_start, "SILENCE_S", 0.02)
    monkeypatch.setattr(warm_start, "ACCEPTED_S", DEADLINE_S)
    hanging = ControlSocket(
        data_dir, {"accepted": lambda: asking.wait() and {"only": [], "accepted": {}}}
    )
    path = workers_folder(data_dir)
    next(path.glob("*.sock")).rename(path / "1.sock")
    telling = ControlSocket(
        data_dir, {"accepted": lambda: {"only": [], "accepted": {"acme": "d1"}}}
    )

    accepted = accepted_by_siblings(data_dir)

    asking.set()
    hanging.close()
    telling.close()
    assert {("acme", "d1")} == accepted
