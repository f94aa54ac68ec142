"""Files that wait for a verdict: real files and loader processes, a clock moved by hand."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from servers import DEADLINE_S
from tenantry.reload.validation_queue import BATCH_S, ValidationQueue
from tenantry.reload.workers import JUDGES, ReloadWorkers
from tenantry.routing.mount import Mount
from tenantry.tenants.catalogue import ValidationResult
from tenantry.tenants.file import FileContent, read_content


class Judged:
    """The files of one folder, and the verdicts on them."""

    def __init__(self, data_dir: Path) -> None:
        self.now_s = 100.0
        self.verdicts: list[str] = []
        self._woken = threading.Event()
        self.lanes = ReloadWorkers(
            data_dir, lambda _: pytest.fail("nothing is built"), self._woken.set
        )
        self.judging = ValidationQueue(self.lanes, self._note, self._woken.set, lambda: self.now_s)

    def _note(self, content: FileContent, verdict: ValidationResult) -> None:
        self.verdicts.append(f"{content.path.stem} {type(verdict).__name__}")

    def collect(self) -> None:
        """Wait until nothing is being judged, and take the verdicts in."""
        while self.lanes.judging:
            assert self._woken.wait(DEADLINE_S)
            self._woken.clear()
            for result in self.lanes.collect():
                result()


@pytest.fixture(name="judged")
def _judged(data_dir: Path) -> Iterator[Judged]:
    """Return the judging; its lanes end with the test."""
    judged = Judged(data_dir)
    yield judged
    judged.lanes.close()


WriteTenant = Callable[..., Path]


def test_verdicts_are_due_in_name_order_when_all_are_there(
    judged: Judged, write_tenant: WriteTenant
) -> None:
    """Or after a while; while the host starts, each at once."""
    for name in ("globex", "acme"):
        judged.judging.add(read_content(write_tenant(name)))
    judged.judging.send()
    judged.collect()
    judged.judging.add(read_content(write_tenant("initech")))
    due = [judged.judging.take_due(is_starting=False)]

    judged.now_s += BATCH_S

    due += [judged.judging.take_due(is_starting=False) for _ in "ab"]
    assert [[], ["acme", "globex"], []] == due


def test_a_verdict_on_older_content_is_void(judged: Judged, write_tenant: WriteTenant) -> None:
    """Only the newest counts, and that of a file that is gone not at all."""
    for name in ("acme", "globex"):
        judged.judging.add(read_content(write_tenant(name)))
    judged.judging.send()
    path = write_tenant("acme")
    path.write_text("SECRET_KEY = 1\n")
    judged.judging.add(read_content(path))
    judged.judging.disappear("globex")
    judged.collect()
    before = list(judged.verdicts)

    judged.judging.send()
    judged.collect()

    assert ([], ["acme RejectedTenant"]) == (before, judged.verdicts)


def test_a_file_that_a_request_waits_for_is_judged_first(
    judged: Judged, write_tenant: WriteTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the request goes on as soon as something was decided."""
    names = [f"t{number}" for number in range(JUDGES + 1)] + ["acme"]
    for name in names:
        judged.judging.appear(name)
        judged.judging.add(read_content(write_tenant(name)))
    mount = Mount("acme", None, lambda _: pytest.fail("nothing is built"))
    asking = threading.Thread(target=judged.judging.await_verdict, args=[mount])
    is_asked = threading.Event()
    monkeypatch.setattr(judged.judging, "_wake", is_asked.set)
    asking.start()
    assert is_asked.wait(DEADLINE_S)

    judged.judging.send()
    judged.collect()

    for name in judged.judging.take_due(is_starting=True):
        judged.judging.settle(name)
    asking.join(DEADLINE_S)
    facts = ("acme Tenant" in judged.verdicts, asking.is_alive(), judged.judging.is_all_settled)
    assert (True, False, False) == facts
