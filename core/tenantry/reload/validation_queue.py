"""The queue of tenant files that wait for validation.

The queue determines the order of the files. `ReloadWorkers` validates the files, and `Reconciler`
applies the results. While the host starts, a request can wait until its tenant's file is
validated.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue

from tenantry.http.environ import START_WAIT_S
from tenantry.reload.workers import ReloadWorkers
from tenantry.routing.mount import Mount
from tenantry.tenants.file import FileContent
from tenantry.tenants.validation import ValidationResult

UNQUEUED_WAIT_S = 1.0
"""Seconds that requests wait in a thread for one tenant file while the host starts, counted from
the first request. After this time, a tenant file that hangs no longer occupies request threads."""

BATCH_S = 0.25
"""Seconds that a validation result waits for the results of other files that changed at the same
time. If two new tenants conflict, every worker then accepts the tenant whose name comes first, in
whatever order the files were validated."""


class ValidationQueue:
    """The changed tenant files that the follower has not reconciled yet.

    Only the follower's thread uses the queue, except for `wait` and `ask`, which are thread-safe.

    Args:
        workers: the threads that validate tenant files.
        on_result: called with each result, unless the tenant file has changed again.
        wake: starts the next round of the follower.
        note_reconciled: called when the requests for a tenant can continue.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        workers: ReloadWorkers,
        on_result: Callable[[FileContent, ValidationResult], None],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        note_reconciled: Callable[[], None] = lambda: None,
    ) -> None:
        self._note_reconciled = note_reconciled
        self._workers = workers
        self._on_result = on_result
        self._wake = wake
        self._clock = clock
        self._newest: dict[str, FileContent] = {}  # name → content that has no result yet
        self._waiting: OrderedDict[str, None] = OrderedDict()  # names not passed to the workers yet
        self._urgent: SimpleQueue[str] = SimpleQueue()  # names that a request waits for
        # Names of tenants whose result `take_due` has not returned yet.
        self._with_result: set[str] = set()
        self._take_at = math.inf  # latest time to take the results
        self._new: set[str] = set()  # names that have never been reconciled
        self._first_request_at: dict[str, float] = {}  # name → when a request began to wait
        self._reconciled = threading.Condition()  # notified when a name leaves `_new`

    @property
    def is_idle(self) -> bool:
        """Whether no tenant file waits for validation or is being validated."""
        return not self._waiting and not self._workers.validating

    @property
    def has_new_names(self) -> bool:
        """Whether some tenant files have never been reconciled."""
        return bool(self._new)

    @property
    def take_at(self) -> float:
        """Latest time to call `take_due`, or infinity if there is no result."""
        return self._take_at if self._with_result else math.inf

    def add_name(self, name: str) -> None:
        """Add a new tenant file. Requests to the tenant wait until the file is reconciled."""
        self._new.add(name)
        self._first_request_at.pop(name, None)

    def add(self, content: FileContent) -> None:
        """Queue the new content of a tenant file for validation."""
        name = content.path.stem
        self._newest[name] = content
        self._waiting[name] = None

    def remove(self, name: str) -> None:
        """Forget a deleted tenant file, and let requests that wait for it continue."""
        self._newest.pop(name, None)
        self._waiting.pop(name, None)
        self._with_result.discard(name)
        self.mark_reconciled(name)

    def submit(self) -> None:
        """Pass files to the workers while a thread is free, beginning with urgent files."""
        while self._waiting and self._workers.can_validate:
            content = self._newest[self._next_name()]
            self._workers.validate(
                content, partial(self._handle_result, content), partial(self._is_newest, content)
            )

    def _next_name(self) -> str:
        with suppress(Empty):
            while True:
                name = self._urgent.get_nowait()
                if name in self._waiting:
                    del self._waiting[name]
                    return name
        return self._waiting.popitem(last=False)[0]

    def _is_newest(self, content: FileContent) -> bool:
        return self._newest.get(content.path.stem) is content

    def _handle_result(self, content: FileContent, result: ValidationResult) -> None:
        if not self._is_newest(content):
            return  # the tenant file has changed or disappeared
        name = content.path.stem
        del self._newest[name]
        if not self._with_result:
            self._take_at = self._clock() + BATCH_S
        self._with_result.add(name)
        self._on_result(content, result)

    def take_due(self, *, is_starting: bool) -> list[str]:
        """Return the tenants to reconcile now, sorted by name; after the start, in batches."""
        if not is_starting and not self.is_idle and self._clock() < self._take_at:
            return []
        names, self._with_result = sorted(self._with_result), set()
        return names

    def mark_reconciled(self, name: str) -> None:
        """Let requests that wait for the tenant `name` continue."""
        if name in self._new:
            self._new.discard(name)
            self._first_request_at.pop(name, None)
            self._free_memory()
            with self._reconciled:
                self._reconciled.notify_all()
            self._note_reconciled()

    def _free_memory(self) -> None:
        """Free the memory of emptied collections, 100 bytes for each tenant, after the start."""
        if not (self._new or self._waiting or self._newest):
            for emptied in (self._new, self._waiting, self._newest):
                emptied.clear()  # removing the entries one by one frees only the entries

    def wait(self, mount: Mount) -> None:
        """Move a tenant's file to the front, and wait `UNQUEUED_WAIT_S` until it is reconciled."""
        name = mount.name
        waited_s = self._ask(name)
        with self._reconciled:
            left_s = max(UNQUEUED_WAIT_S - waited_s, 0)
            self._reconciled.wait_for(lambda: name not in self._new, left_s)

    def ask(self, mount: Mount) -> float:
        """Move a tenant's file to the front; return the seconds for which a request may wait.

        The seconds count from the first request of the tenant.
        """
        if mount.name not in self._new:
            return 0.0
        return START_WAIT_S - self._ask(mount.name)

    def _ask(self, name: str) -> float:
        """Move a tenant's file to the front; return the seconds since the first request."""
        now = self._clock()
        if name not in self._first_request_at:
            self._first_request_at[name] = now
            self._urgent.put(name)
            self._wake()
        return now - self._first_request_at.get(name, now)
