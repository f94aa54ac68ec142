"""Which files wait for a verdict, in which order, and the requests that wait for one.

Judges nothing itself (the lanes do) and decides nothing: it tells which verdicts are due.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue

from tenantry.reload.workers import ReloadWorkers
from tenantry.routing.mount import Mount
from tenantry.tenants.catalogue import ValidationResult
from tenantry.tenants.file import FileContent

VERDICT_PATIENCE_S = 1.0
"""How long requests wait for the verdict on their tenant's file, from the first one on, while the
host starts: those of a file that hangs must not hold the threads again and again."""

BATCH_S = 0.25
"""How long a verdict may wait for those on files that changed with it. Of two new tenants that
clash the first by name is accepted then, in each worker, whichever is judged first."""


class ValidationQueue:
    """The files between "has new content" and "was decided on".

    One thread uses it, which also collects from `lanes`; only `await_verdict` is for any thread.

    Args:
        lanes: judge the files.
        then: takes each verdict, with its content, unless there is newer content by then.
        wake: lets the thread that decides begin its next round; any thread calls it.
        clock: seconds.
    """

    def __init__(
        self,
        lanes: ReloadWorkers,
        then: Callable[[FileContent, ValidationResult], None],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lanes = lanes
        self._then = then
        self._wake = wake
        self._clock = clock
        self._newest: dict[str, FileContent] = {}  # until its verdict; one on older content is void
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._undecided: set[str] = set()  # names that have a new verdict
        self._decide_by = math.inf
        self._unsettled: set[str] = set()  # names on which nothing was decided yet
        self._urgent: SimpleQueue[str] = SimpleQueue()
        self._asked: dict[str, float] = {}  # name → when the first request asked for a verdict
        self._settled = threading.Condition()

    @property
    def is_idle(self) -> bool:
        """Whether no file is being judged or waits for that."""
        return not self._waiting and not self._lanes.judging

    @property
    def is_all_settled(self) -> bool:
        """Whether something was decided on each name."""
        return not self._unsettled

    @property
    def decide_by(self) -> float:
        """When the verdicts that are there are due at the latest; infinite while there is none."""
        return self._decide_by if self._undecided else math.inf

    def appear(self, name: str) -> None:
        """Begin with a name: its requests wait until something is decided on it."""
        self._unsettled.add(name)
        self._asked.pop(name, None)

    def add(self, content: FileContent) -> None:
        """Have new content judged."""
        name = content.path.stem
        self._newest[name] = content
        self._waiting[name] = None

    def disappear(self, name: str) -> None:
        """Forget a name; who waits for it waits no more."""
        self._newest.pop(name, None)
        self._waiting.pop(name, None)
        self._undecided.discard(name)
        self.settle(name)

    def send(self) -> None:
        """Hand to the lanes what they have room for, first what requests wait for."""
        try:
            while True:
                name = self._urgent.get_nowait()
                if name in self._waiting:
                    self._waiting.move_to_end(name, last=False)
        except Empty:
            pass
        while self._waiting and self._lanes.has_room:
            content = self._newest.get(self._waiting.popitem(last=False)[0])
            if content is not None:
                judged, is_newest = (
                    partial(self._judged, content),
                    partial(self._is_newest, content),
                )
                self._lanes.judge(content, judged, is_newest)

    def _is_newest(self, content: FileContent) -> bool:
        return self._newest.get(content.path.stem) is content

    def _judged(self, content: FileContent, verdict: ValidationResult) -> None:
        if not self._is_newest(content):
            return  # the file has changed or gone meanwhile
        name = content.path.stem
        del self._newest[name]
        if not self._undecided:
            self._decide_by = self._clock() + BATCH_S
        self._undecided.add(name)
        self._then(content, verdict)

    def take_due(self, *, is_starting: bool) -> list[str]:
        """Return the names to decide on now: at start one by one, later a batch in name order."""
        if not is_starting and not self.is_idle and self._clock() < self._decide_by:
            return []
        due, self._undecided = sorted(self._undecided), set()
        return due

    def settle(self, name: str) -> None:
        """Something was decided on a name: let the requests go on that wait for it."""
        if name in self._unsettled:
            self._unsettled.discard(name)
            self._asked.pop(name, None)
            with self._settled:
                self._settled.notify_all()

    def await_verdict(self, mount: Mount) -> None:
        """Have a tenant's file judged next, and wait for that, for a second at most."""
        first = self._asked.setdefault(mount.name, self._clock())
        self._urgent.put(mount.name)
        self._wake()
        with self._settled:
            self._settled.wait_for(
                lambda: mount.name not in self._unsettled,
                max(first + VERDICT_PATIENCE_S - self._clock(), 0),
            )
