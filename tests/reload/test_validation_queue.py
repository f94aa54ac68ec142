"""Changed tenant files are validated in loader processes, and results are handled together."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from servers import DEADLINE_S
from tenantry.http.environ import START_WAIT_S
from tenantry.reload.validation_queue import BATCH_S, ValidationQueue
from tenantry.reload.workers import MAX_VALIDATIONS, ReloadWorkers
from tenantry.routing.mount import Mount
from tenantry.settings import HostSettings
from tenantry.tenants.file import FileContent, read_content
from tenantry.tenants.validation import ValidationResult

WriteTenant = Callable[..., Path]


class Validation:
    """A validation queue, its worker threads, and the results so far."""

    def __init__(self, data_dir: Path) -> None:
        self.now_s = 100.0
        self.results: list[str] = []
        self._woken = threading.Event()
        self.workers = ReloadWorkers(
            HostSettings(data_dir=data_dir),
            lambda _: pytest.fail("nothing is built"),
            self._woken.set,
        )
        self.queue = ValidationQueue(self.workers, self._note, self._woken.set, lambda: self.now_s)

    def _note(self, content: FileContent, result: ValidationResult) -> None:
        self.results.append(f"{content.path.stem} {type(result).__name__}")

    def collect(self) -> None:
        """Wait until no validation runs, and handle the results."""
        while self.workers.validating:
            assert self._woken.wait(DEADLINE_S)
            self._woken.clear()
            for handle_result in self.workers.collect():
                handle_result()


@pytest.fixture(name="validation")
def _validation(data_dir: Path) -> Iterator[Validation]:
    """Return a validation queue. The fixture closes the queue's workers."""
    validation = Validation(data_dir)
    yield validation
    validation.workers.close()


def test_results_are_due_together_and_sorted_by_name(
    validation: Validation, write_tenant: WriteTenant
) -> None:
    """When several tenant files are validated, the results are handled in the order of names."""
    queue = validation.queue
    for name in ("globex", "acme"):
        queue.add(read_content(write_tenant(name)))
    queue.submit()
    validation.collect()
    queue.add(read_content(write_tenant("initech")))
    due = [queue.take_due(is_starting=False)]

    validation.now_s += BATCH_S

    due += [queue.take_due(is_starting=False) for _ in "ab"]
    assert [[], ["acme", "globex"], []] == due


def test_a_result_of_older_content_is_ignored(
    validation: Validation, write_tenant: WriteTenant
) -> None:
    """A validation result of older content, or of a deleted file, is ignored."""
    queue = validation.queue
    for name in ("acme", "globex"):
        queue.add(read_content(write_tenant(name)))
    queue.submit()
    path = write_tenant("acme")
    path.write_text("SECRET_KEY = 1\n")
    queue.add(read_content(path))
    queue.remove("globex")
    validation.collect()
    before = list(validation.results)

    queue.submit()
    validation.collect()

    assert ([], ["acme RejectedTenant"]) == (before, validation.results)


def test_a_file_that_a_request_waits_for_is_validated_first(
    validation: Validation, write_tenant: WriteTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a request waits for a tenant file, that file is validated first."""
    queue = validation.queue
    for name in [f"t{number}" for number in range(MAX_VALIDATIONS + 1)] + ["acme"]:
        queue.add_name(name)
        queue.add(read_content(write_tenant(name)))
    mount = Mount("acme", None, lambda _: pytest.fail("nothing is built"))
    request = threading.Thread(target=queue.wait, args=[mount])
    is_waiting = threading.Event()
    monkeypatch.setattr(queue, "_wake", is_waiting.set)
    request.start()
    assert is_waiting.wait(DEADLINE_S)

    queue.submit()
    validation.collect()

    for name in queue.take_due(is_starting=True):
        queue.mark_reconciled(name)
    request.join(DEADLINE_S)
    facts = ("acme Tenant" in validation.results, request.is_alive(), queue.has_new_names)
    assert (True, False, True) == facts


def test_a_request_can_ask_without_waiting(
    validation: Validation, write_tenant: WriteTenant
) -> None:
    """A request that waits without a thread moves its tenant's file to the front once."""
    queue, noted = validation.queue, list[str]()
    queue._note_reconciled = lambda: noted.append("reconciled")
    mount = Mount("initech", None, lambda _: pytest.fail("nothing is built"))
    for name in ("acme", "globex", "initech"):
        queue.add_name(name)
        queue.add(read_content(write_tenant(name)))
    left_s = [queue.ask(mount)]
    validation.now_s += 5.0
    left_s.append(queue.ask(mount))
    first = queue._next_name()
    queue.mark_reconciled("initech")
    left_s.append(queue.ask(mount))

    assert ([START_WAIT_S, START_WAIT_S - 5.0, 0.0], "initech") == (left_s, first)
    assert (["reconciled"], 0) == (noted, queue._urgent.qsize())
