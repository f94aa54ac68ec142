"""The threads that validate tenant files and build instances for the follower.

Because a validation or a build can be slow or hang, the follower's own thread only submits jobs and
collects results.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from tenantry.errors import Problem
from tenantry.routing.instance import Instance
from tenantry.routing.worker_pool import WorkerPool
from tenantry.settings import HostSettings
from tenantry.tenants.file import FileContent, printable, read_content
from tenantry.tenants.loader import RUN_TIMEOUT_S, Loader
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import RejectedTenant, ValidationResult, validate_file

MAX_VALIDATIONS = 4
"""Maximum number of concurrent validations, and so of loader processes: enough for two
processors."""

MAX_BUILDS = 2
"""Maximum number of concurrent builds, which share the interpreter lock with requests."""

FIRST_TIMEOUT_S = 0.5
"""Time limit in seconds for the first validation of a tenant file, which usually takes 1 ms. A slow
file is validated again with a longer limit on a separate thread, so that four files that hang do
not occupy all threads for 5 s."""

CLOSE_TIMEOUT_S = 2.0
"""Seconds that `close` waits for running jobs. gunicorn gives a worker 30 s to stop."""

BuildResult = Instance | BaseException | None
"""The result of a build: an instance, an exception, or None if the build was no longer wanted and
did not start."""


@dataclass(frozen=True, slots=True)
class _Result:
    handle: Callable[[Any], None]
    value: ValidationResult | BuildResult


class ReloadWorkers:
    """The threads and loader processes of one follower, until `close` ends them.

    The follower's thread submits jobs, collects results and runs the `on_result` callbacks. The
    `is_wanted` callbacks run on a worker thread.

    Args:
        settings: the settings of the host.
        build: returns an instance of a tenant; may raise any exception.
        notify: called on a worker thread when a result is ready to collect.
        last_good: returns the last good content of a tenant file while the process starts, or None.
    """

    def __init__(
        self,
        settings: HostSettings,
        build: Callable[[Tenant], Instance],
        notify: Callable[[], None],
        *,
        last_good: Callable[[str], FileContent | None] = lambda _: None,
    ) -> None:
        self._last_good = last_good
        self.restorable: dict[str, Tenant] = {}
        """The last good version of each tenant whose file has changed while no worker served."""
        self._settings = settings
        self._build = build
        self._notify = notify
        self._results: SimpleQueue[_Result] = SimpleQueue()
        self._idle_loaders: SimpleQueue[Loader] = SimpleQueue()
        self._validators = WorkerPool("tenantry-validator", MAX_VALIDATIONS)
        self._slow_validator = WorkerPool("tenantry-slow-validator", 1)
        self._builders = WorkerPool("tenantry-builder", MAX_BUILDS)
        self._validating = 0
        self._is_closed = False
        self.creates_secrets = True
        """Whether tenant files may create secrets."""

    @property
    def validating(self) -> int:
        """Number of first validations whose results are not collected yet."""
        return self._validating

    @property
    def can_validate(self) -> bool:
        """Whether a thread is free to validate another file."""
        return self._validating < MAX_VALIDATIONS

    def validate(
        self,
        content: FileContent,
        on_result: Callable[[ValidationResult], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        """Validate a tenant file, and validate a slow file again with a longer timeout."""
        self._validating += 1
        handle = partial(self._end_first_validation, content, on_result, is_wanted)
        self._validators.submit(partial(self._validate, content, FIRST_TIMEOUT_S, handle))

    def _end_first_validation(
        self,
        content: FileContent,
        on_result: Callable[[ValidationResult], None],
        is_wanted: Callable[[], bool],
        result: ValidationResult,
    ) -> None:
        self._validating -= 1
        if isinstance(result, RejectedTenant) and result.has_timed_out:
            again = partial(self._validate, content, RUN_TIMEOUT_S, on_result, is_wanted)
            self._slow_validator.submit(again)
        else:
            on_result(result)

    def build(
        self,
        tenant: Tenant,
        on_result: Callable[[BuildResult], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        """Build a new instance while the old instance serves."""
        self._builders.submit(partial(self._build_instance, tenant, on_result, is_wanted))

    @property
    def has_waiting_builds(self) -> bool:
        """Whether builds wait for a thread, so that `start_builds` must be called again soon."""
        return self._builders.has_waiting_jobs

    def start_builds(self) -> None:
        """Start threads for the waiting builds, in addition to the threads of late builds."""
        self._builders.start_threads()

    def collect(self) -> Iterator[Callable[[], None]]:
        """Yield, for each result, a function that passes the result to its callback."""
        with suppress(Empty):
            while True:
                result = self._results.get_nowait()
                yield partial(result.handle, result.value)

    def stop_idle_loaders(self) -> None:
        """Stop the idle loader processes. The next validation starts a new loader process."""
        with suppress(Empty):
            while True:
                self._idle_loaders.get_nowait().close()

    def close(self) -> None:
        """Drop the waiting jobs and stop the threads. Idempotent.

        A job that takes longer than `CLOSE_TIMEOUT_S` ends later, or together with the process. If
        a build ends after `close`, its instance is closed immediately.
        """
        self._is_closed = True
        pools = (self._validators, self._slow_validator, self._builders)
        for pool in pools:
            pool.close()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for pool in pools:
            pool.join(deadline)
        self._drop_results()

    def _drop_results(self) -> None:
        self.stop_idle_loaders()
        with suppress(Empty):
            while True:
                value = self._results.get_nowait().value
                if isinstance(value, Instance):
                    value.retire()

    # -- on the worker threads ------------------------------------------------------------------

    def _validate(
        self,
        content: FileContent,
        timeout_s: float,
        handle: Callable[[ValidationResult], None],
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        if not is_wanted() or self._is_closed:
            return
        try:
            loader = self._idle_loaders.get_nowait()
        except Empty:
            loader = Loader(data_dir=self._settings.data_dir, creates_secrets=self.creates_secrets)
        try:
            if not content.digest:
                content = read_content(content.path)
            result = validate_file(content, self._settings, loader, timeout_s)
            self._load_last_good(content, loader, timeout_s, result)
        except BaseException as error:  # noqa: BLE001 - without a result, the host is never ready
            text = f"cannot be validated: {type(error).__name__}; change the file to try again."
            problem = Problem(printable(str(content.path)), text)
            result = RejectedTenant(printable(content.path.stem), None, (problem,), content.digest)
        finally:
            self._idle_loaders.put(loader)
        self._put(handle, result)

    def _load_last_good(
        self, content: FileContent, loader: Loader, timeout_s: float, result: ValidationResult
    ) -> None:
        """While the process starts, also validate the last good version of a changed file."""
        name = content.path.stem
        if isinstance(result, RejectedTenant) and result.has_timed_out:
            if timeout_s < RUN_TIMEOUT_S:
                return  # the file will be validated again
            loader.close()  # the next load starts another process
        last_good = self._last_good(name)
        if last_good is not None and last_good.digest != content.digest:
            restored = validate_file(last_good, self._settings, loader, FIRST_TIMEOUT_S)
            if isinstance(restored, Tenant):
                self.restorable[name] = restored

    def _build_instance(
        self,
        tenant: Tenant,
        on_result: Callable[[BuildResult], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        result: BuildResult = None
        try:
            if is_wanted() and not self._is_closed:
                # A new context keeps the context variables that an endpoint sets from staying on
                # the thread.
                result = Context().run(self._build, tenant)
        except BaseException as error:  # noqa: BLE001 - an import may raise SystemExit, too
            result = error
        self._put(on_result, result)

    def _put(self, handle: Callable[[Any], None], value: ValidationResult | BuildResult) -> None:
        self._results.put(_Result(handle, value))
        if self._is_closed:  # after `close`, no thread collects results
            self._drop_results()
        self._notify()
