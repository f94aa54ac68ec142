"""A few threads beside the requests' own, which judge tenant files and build instances.

What runs here may be slow or hang: the thread that decides (`reload.Follower`) only asks for
results and collects them. The threads are daemons: one that hangs stops neither `close()` nor the
process.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from tenantry.errors import Problem
from tenantry.routing.instance import Instance
from tenantry.routing.worker_pool import WorkerPool
from tenantry.tenants.catalogue import RejectedTenant, ValidationResult, validate_file
from tenantry.tenants.file import FileContent, printable, read_content
from tenantry.tenants.loader import RUN_TIMEOUT_S, Loader
from tenantry.tenants.model import Tenant

JUDGES = 4
"""Files judged at once: enough for two processors, and few loader processes."""

BUILDERS = 2
"""Instances built at once: they share the interpreter lock with the requests."""

FIRST_TRY_S = 0.5
"""A file that takes longer is judged again with the loader's whole time, in a lane of its own:
four files that hang must not hold all lanes for 5 s. A usual file takes 1 ms."""

CLOSE_PATIENCE_S = 2.0
"""How long `close()` waits for jobs that go on: a server gives its worker 30 s to stop."""

Built = Instance | BaseException | None
"""None: the build was not begun, for nobody wanted it any more."""

Result = Callable[[], None]
"""What to do with a result; called by whoever collects it."""


class ReloadWorkers:
    """The threads and their loader processes; `close()` ends both. One thread asks and collects.

    Args:
        data_dir: where the tenants' folders are.
        build: makes an instance; may raise anything.
        notify: called, from a lane, whenever there is a result to collect.
    """

    def __init__(
        self, data_dir: Path, build: Callable[[Tenant], Instance], notify: Callable[[], None]
    ) -> None:
        self._data_dir = data_dir
        self._build = build
        self._notify = notify
        self._results: SimpleQueue[_Result] = SimpleQueue()
        self._loaders: SimpleQueue[Loader] = SimpleQueue()  # those that no lane uses now
        self._judges = WorkerPool("tenantry-judge", JUDGES)
        self._slow_judge = WorkerPool("tenantry-slow-judge", 1)
        self._builders = WorkerPool("tenantry-builder", BUILDERS)
        self._judging = 0
        self._is_closed = False

    @property
    def judging(self) -> int:
        """Verdicts that are still to be collected."""
        return self._judging

    @property
    def has_room(self) -> bool:
        """Whether another file would be judged at once."""
        return self._judging < JUDGES

    def judge(
        self,
        content: FileContent,
        then: Callable[[ValidationResult], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        """Judge a file; a slow one again, with more time, where it delays no other.

        It does not count as being judged then. `is_wanted` is asked in the lane: what has changed
        meanwhile is not run again, and has no verdict.
        """
        self._judging += 1
        self._judges.submit(partial(self._judge_first, content, then, is_wanted))

    def build(
        self, tenant: Tenant, then: Callable[[Built], None], is_wanted: Callable[[], bool]
    ) -> None:
        """Build an instance beside the one that serves; `is_wanted` is asked in the lane.

        `then` is told however that ends.
        """
        self._builders.submit(partial(self._build_one, tenant, then, is_wanted))

    def relieve(self) -> bool:
        """Let other threads take the place of late ones; whether builds wait all the same."""
        self._builders.start_threads()
        return self._builders.has_waiting_jobs

    def collect(self) -> Iterator[Result]:
        """Yield what to do with the results that are there."""
        with suppress(Empty):
            while True:
                result = self._results.get_nowait()
                if result.is_of_judge:
                    self._judging -= 1
                if result.then is not None:
                    yield partial(result.then, result.value)

    def rest(self) -> None:
        """End the loader processes that no lane uses; the next file starts one."""
        with suppress(Empty):
            while True:
                self._loaders.get_nowait().close()

    def close(self) -> None:
        """End the lanes; what waits for one is dropped. Idempotent.

        A job that goes on for longer than `CLOSE_PATIENCE_S` ends by itself, or with the process;
        what it makes is closed at once.
        """
        self._is_closed = True
        crews = (self._judges, self._slow_judge, self._builders)
        for crew in crews:
            crew.close()
        until = time.monotonic() + CLOSE_PATIENCE_S
        for crew in crews:
            crew.join(until)
        self._drop_results()

    def _drop_results(self) -> None:
        self.rest()
        with suppress(Empty):
            while True:
                result = self._results.get_nowait()
                if isinstance(result.value, Instance):
                    result.value.retire()

    # -- in the lanes ---------------------------------------------------------------------------

    def _judge_first(
        self,
        content: FileContent,
        then: Callable[[ValidationResult], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        verdict = self._verdict(content, FIRST_TRY_S)
        if isinstance(verdict, RejectedTenant) and verdict.is_hung and not self._is_closed:
            self._slow_judge.submit(partial(self._judge_again, content, then, is_wanted))
            self._put(_Result(None, None, is_of_judge=True))
        else:
            self._put(_Result(then, verdict, is_of_judge=True))

    def _judge_again(
        self,
        content: FileContent,
        then: Callable[[ValidationResult], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        if is_wanted() and not self._is_closed:
            self._put(_Result(then, self._verdict(content, RUN_TIMEOUT_S)))

    def _verdict(self, content: FileContent, timeout_s: float) -> ValidationResult:
        try:
            loader = self._loaders.get_nowait()
        except Empty:
            loader = Loader(data_dir=self._data_dir)
        try:
            if not content.digest:
                content = read_content(content.path)
            return validate_file(content, self._data_dir, loader, timeout_s)
        except BaseException as error:  # noqa: BLE001 - without a verdict the host is never ready
            text = f"cannot be judged: {type(error).__name__}; change the file to try again."
            problem = Problem(printable(str(content.path)), text)
            return RejectedTenant(printable(content.path.stem), None, (problem,), content.digest)
        finally:
            self._loaders.put(loader)

    def _build_one(
        self, tenant: Tenant, then: Callable[[Built], None], is_wanted: Callable[[], bool]
    ) -> None:
        built: Built = None
        try:
            if is_wanted() and not self._is_closed:
                # In a context of its own: what an endpoint's import sets is not this thread's.
                built = Context().run(self._build, tenant)
        except BaseException as error:  # noqa: BLE001 - SystemExit of an endpoint's import too
            built = error
        self._put(_Result(then, built))

    def _put(self, result: "_Result") -> None:
        self._results.put(result)
        if self._is_closed:  # nobody collects any more
            self._drop_results()
        self._notify()


@dataclass(frozen=True, slots=True)
class _Result:
    then: Callable[[Any], None] | None
    value: ValidationResult | Built | None
    is_of_judge: bool = False
