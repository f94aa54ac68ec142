"""The files that wait for validation, and the requests that wait for a file.

The queue only orders the work: `ReloadWorkers` validates, and `Reconciler` acts on the results.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue

from tenantry.reload.workers import ReloadWorkers
from tenantry.routing.mount import Mount
from tenantry.tenants.file import FileContent
from tenantry.tenants.validation import ValidationResult

MAX_WAIT_S = 1.0
"""How long requests wait for one file while the host starts, counted from the first request. A file
that hangs must not occupy the request threads again and again."""

BATCH_S = 0.25
"""How long a result waits for those of files that changed at the same time. If two new tenants
conflict, each worker then accepts the first one by name, whichever was validated first."""


class ValidationQueue:
    """The files between a change and the follower's reaction to it.

    One thread uses it and collects from `workers`. Only `wait` is for other threads.

    Args:
        workers: validate the files.
        on_result: called with each result, unless the file has changed again by then.
        wake: starts the next round of the follower.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        workers: ReloadWorkers,
        on_result: Callable[[FileContent, ValidationResult], None],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers = workers
        self._on_result = on_result
        self._wake = wake
        self._clock = clock
        self._newest: dict[str, FileContent] = {}  # name → content that has no result yet
        self._waiting: OrderedDict[str, None] = OrderedDict()  # names not yet given to the workers
        self._urgent: SimpleQueue[str] = SimpleQueue()  # names that a request waits for
        self._with_result: set[str] = set()  # names whose newest result has not been taken yet
        self._take_at = math.inf  # latest time to take them
        self._new: set[str] = set()  # names that have never been reconciled
        self._first_request_at: dict[str, float] = {}  # name → when a request began to wait
        self._reconciled = threading.Condition()  # notified when a name leaves `_new`

    @property
    def is_idle(self) -> bool:
        """Whether no file waits for its validation or is being validated."""
        return not self._waiting and not self._workers.validating

    @property
    def has_new_names(self) -> bool:
        """Whether some names have never been reconciled."""
        return bool(self._new)

    @property
    def take_at(self) -> float:
        """Latest time to call `take_due`; infinite if there is no result."""
        return self._take_at if self._with_result else math.inf

    def add_name(self, name: str) -> None:
        """Add a file that was not there before. Its requests wait until it is reconciled."""
        self._new.add(name)
        self._first_request_at.pop(name, None)

    def add(self, content: FileContent) -> None:
        """Have new content validated."""
        name = content.path.stem
        self._newest[name] = content
        self._waiting[name] = None

    def remove(self, name: str) -> None:
        """Forget a file that is gone, and stop its requests from waiting."""
        self._newest.pop(name, None)
        self._waiting.pop(name, None)
        self._with_result.discard(name)
        self.mark_reconciled(name)

    def submit(self) -> None:
        """Pass as many files to the workers as they can validate now, urgent ones first."""
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
            return  # the file has changed or disappeared since
        name = content.path.stem
        del self._newest[name]
        if not self._with_result:
            self._take_at = self._clock() + BATCH_S
        self._with_result.add(name)
        self._on_result(content, result)

    def take_due(self, *, is_starting: bool) -> list[str]:
        """Return the names to reconcile now. At start, each at once; later, batches by name."""
        if not is_starting and not self.is_idle and self._clock() < self._take_at:
            return []
        names, self._with_result = sorted(self._with_result), set()
        return names

    def mark_reconciled(self, name: str) -> None:
        """Let the requests continue that wait for this name."""
        if name in self._new:
            self._new.discard(name)
            self._first_request_at.pop(name, None)
            with self._reconciled:
                self._reconciled.notify_all()

    def wait(self, mount: Mount) -> None:
        """Have a tenant's file validated next, and wait until it is reconciled or time is up."""
        name = mount.name
        first_at = self._first_request_at.setdefault(name, self._clock())
        self._urgent.put(name)
        self._wake()
        with self._reconciled:
            left_s = max(first_at + MAX_WAIT_S - self._clock(), 0)
            self._reconciled.wait_for(lambda: name not in self._new, left_s)
