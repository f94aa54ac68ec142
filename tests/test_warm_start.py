"""A new worker has awake what its siblings have."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core import warm_start
from core.host import Host
from core.mounts import Mounts
from core.status import StatusSocket
from core.warm_start import wake_as_siblings


@pytest.fixture(name="sibling")
def _sibling(data_dir: Path) -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Return what opens a socket that tells who is awake; closed after the test."""
    opened: list[StatusSocket] = []

    def tell(names: Callable[[], Any]) -> None:
        opened.append(StatusSocket(data_dir, {"awake": lambda: {"names": names()}}))

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

    wake_as_siblings(data_dir, lambda: host.mounts)

    assert {"acme": "idle", "globex": "serving"} == {one.name: one.state for one in host.status()}


def test_a_stopping_process_is_no_sibling(host: Host, write_tenant: Callable[..., Path]) -> None:
    """Nobody waits for builds while there is no worker left that accepts connections."""
    write_tenant("acme")
    host.load()
    host.mounts.all[0].wake()
    before = host.tell_awake()

    host.stop()

    assert [{"names": ["acme"]}, {"names": []}] == [before, host.tell_awake()]


def test_a_sibling_that_hangs_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, sibling: Callable[..., None], data_dir: Path
) -> None:
    """The start goes on after `WARM_S`, and nothing more is built then."""
    monkeypatch.setattr(warm_start, "WARM_S", 0.05)
    is_over = threading.Event()
    asked: list[str] = []
    sibling(lambda: [is_over.wait(), "acme"][1:])

    def mounts() -> Mounts:
        asked.append("asked")
        return Mounts(lambda *_: ())

    wake_as_siblings(data_dir, mounts)
    was_asked = list(asked)
    is_over.set()
    for thread in threading.enumerate():
        if thread.name == "tenantry-warm":
            thread.join()

    assert ([], ["asked"]) == (was_asked, asked)
