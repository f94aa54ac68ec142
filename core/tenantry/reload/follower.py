"""The follower: updates the mounts of one process when the tenants folder changes.

Each worker process has its own follower, and all followers converge on the same content,
independently of the gunicorn master. The follower's thread makes all decisions but runs no tenant's
code. After a tenant file has changed, the file is validated and compared with the other files.
After the validation, a new instance is built and replaces the old instance in one assignment, and
the old instance is retired. If any step fails, the old instance keeps serving.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Collection
from functools import partial

from tenantry.middleware.in_flight import RequestLimits
from tenantry.reload.draining import Draining
from tenantry.reload.eviction import Eviction
from tenantry.reload.followed_file import DisabledStatus
from tenantry.reload.rebuilds import Rebuilds
from tenantry.reload.reconcile import Reconciler, run_step
from tenantry.reload.validation_queue import ValidationQueue
from tenantry.reload.warm_start import SiblingTenant
from tenantry.reload.workers import CLOSE_TIMEOUT_S, ReloadWorkers
from tenantry.routing.build_pool import BuildPool
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.routing.quarantine import Quarantine
from tenantry.routing.router import Router
from tenantry.settings import HostSettings
from tenantry.tenants.file import FileContent
from tenantry.tenants.folder import SETTLE_S, TenantsFolder
from tenantry.tenants.last_good import LastGood
from tenantry.tenants.model import Tenant
from tenantry.tenants.operator_state import (
    OperatorState,
    OperatorStateWatch,
    end_trial,
    trial_lock_file,
)
from tenantry.tenants.validation import ValidationResult

POLL_S = 1.0
"""Seconds between two rounds of housekeeping, and between two scans if there are no file events."""

SMALL_FOLDER = 500
"""Maximum number of files for which each scan covers the whole folder, which takes 3 ms. If there
are more files, each scan covers only a part of the folder."""

FULL_SCAN_S = 1.5
"""Seconds within which partial scans cover the whole folder, so that a change takes effect within
2 s."""

PARTIAL_SCAN_S = 0.25
"""Seconds between two partial scans of a large folder. A full scan of 10,000 files takes 45 ms,
which would delay requests."""

SLOW_SCAN_S = 60.0
"""Seconds within which partial scans cover the whole folder if file events are reliable, in case an
event is lost. The operator states are checked at the same pace, because a marker file reports each
change of an operator state."""

PUBLISH_INTERVAL_S = 0.25
"""Minimum seconds between two routing snapshots while files are being validated. Creating a
snapshot of 10,000 tenants takes 15 ms."""

LATE_BUILD_CHECK_S = 0.25
"""Seconds between two rounds of the follower while builds wait for a thread."""

LOADER_IDLE_S = 10.0
"""Seconds after the last validation at which the host ends idle loader processes. A change often
follows soon after another, and starting a loader process takes 50 ms, a third of the time until a
change takes effect."""

_logger = logging.getLogger(__name__)


class Follower:
    """Follows the tenants folder for one process, until `stop` and `close` are called.

    Only one thread may call `step` or `run`. Other threads may read `is_ready` and `disabled`, and
    call `scan_soon`, `set_events_reliable` and `stop`.
    """

    def __init__(
        self,
        folder: TenantsFolder,
        settings: HostSettings,
        router: Router,
        build: Callable[[Tenant], Instance],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_ready = threading.Event()
        """Event that is set once every tenant file has been reconciled."""
        self.disabled: tuple[DisabledStatus, ...] = ()
        """The disabled tenants, in a tuple that each change replaces as a whole."""
        self.on_growth: Callable[[], None] = lambda: None
        """Function to call when all tenants are known, and whenever the number of instances has
        grown by `GROWTH`."""
        self.on_progress: Callable[[], None] = lambda: None
        """Function to call when waiting requests may be able to continue."""
        self.on_evicted: Callable[[str], None] = lambda _: None
        """Function to call with the name of each tenant whose instance was evicted."""
        self._folder = folder
        self._limits_of = partial(RequestLimits.of, settings=settings)
        self._data_dir = settings.data_dir
        self._only = settings.only
        self._router = router
        self._build = build
        self._clock = clock
        self._woken = threading.Event()
        self._is_stopping = False
        self._is_scan_requested = False
        self._are_events_reliable = False
        self._is_folder_missing = False
        self._build_pool = BuildPool(self._note_progress)
        self._last_good = LastGood(settings.data_dir, settings.tenants_dir)
        self._workers = ReloadWorkers(
            settings, build, self._woken.set, last_good=self._last_good.content
        )
        self._draining = Draining(settings.drain_timeout_s, clock)
        self._eviction = Eviction(
            settings.max_active, settings.idle_timeout_s, self._draining, clock
        )
        self._rebuilds = Rebuilds(self._workers, clock)
        self._queue = ValidationQueue(
            self._workers,
            self._set_result,
            self._woken.set,
            clock,
            note_reconciled=self._note_progress,
        )
        # All mounts share these bound methods, because 10,000 copies would take 1.2 MB.
        self._wait_for_validation = self._queue.wait
        self._ask_for_validation = self._queue.ask
        self._note_built = self._record_build
        self._reconciler = Reconciler(
            self._new_mount,
            self._rebuilds,
            self._draining,
            is_missing=folder.is_missing,
            new_quarantine=self._new_quarantine,
            restorable=self._workers.restorable,
            note_accepted=self._last_good.note_accepted,
        )
        self._operator_states = OperatorStateWatch(settings.data_dir)
        self._scanned_at = self._validated_at = -math.inf
        self._next_scan = self._next_housekeeping = self._next_publication = 0.0
        self._unrouted: list[Mount] = []  # mounts outside the routing that are not closed yet

    # -- control --------------------------------------------------------------------------------

    def run(self) -> None:
        """Run rounds until `stop` is called. If a round fails, log the error and continue."""
        while not self._is_stopping:
            try:
                wait_s = self.step()
            except Exception:
                _logger.exception("follower.round_failed")
                wait_s = POLL_S
            self._woken.wait(wait_s)
            self._woken.clear()

    def catch_up(self) -> None:
        """Run rounds until every tenant file is reconciled or the folder is missing."""
        while True:
            wait_s = self.step()
            if self.is_ready.is_set() or self._is_folder_missing:
                return
            self._woken.wait(wait_s)
            self._woken.clear()

    def scan_soon(self) -> None:
        """Wake the follower for a scan of the whole folder."""
        self._is_scan_requested = True
        self._woken.set()

    def set_events_reliable(self, is_reliable: bool) -> None:
        """Set whether every change in the folder causes a call of `scan_soon`."""
        self._are_events_reliable = is_reliable
        self.scan_soon()

    def prefer(self, accepted: Collection[SiblingTenant]) -> None:
        """In a conflict, prefer the tenants that other workers have accepted, or that served last.

        Call this method before the first round.
        """
        claims = self._last_good.open().items()
        last = [SiblingTenant(name, one.digest, one.address) for name, one in claims]
        self._reconciler.prefer(accepted or last)

    def stop(self) -> None:
        """Let `run` return after the current round."""
        self._is_stopping = True
        self._woken.set()

    def throw_secrets_away(self) -> None:
        """Keep tenant files from creating secrets, because a command only inspects the tenants."""
        self._workers.creates_secrets = False

    def close(self) -> None:
        """Stop the worker threads and close every instance, even those in use. Idempotent.

        Call this method after `run` has returned and the server has waited for requests in flight.
        """
        self._workers.close()
        self._build_pool.close()
        self._build_pool.join(time.monotonic() + CLOSE_TIMEOUT_S)
        mounts = [file.mount for file in self._reconciler.files.values()]
        for mount in mounts + self._reconciler.withdrawn + self._unrouted:
            self._close_mount(mount)
        self._reconciler.withdrawn, self._unrouted = [], []
        self._draining.close()

    # -- one round ------------------------------------------------------------------------------

    def step(self) -> float:
        """Run one round of the follower; return the seconds until the next round."""
        if self._is_scan_requested or self._clock() >= self._next_scan:
            self._scan_folder()
        for handle_result in self._workers.collect():
            run_step(handle_result)
        self._reconciler.reconcile_again()
        self._reconcile_due()
        run_step(self._reconciler.fall_back)
        self._queue.submit()
        self._workers.start_builds()
        if self._clock() >= self._next_housekeeping:
            self._do_housekeeping()
        self._reconciler.reconcile_again()
        self._publish_if_due()
        if not self._queue.is_idle:
            self._validated_at = self._clock()
        elif self._clock() - self._validated_at >= LOADER_IDLE_S:
            self._workers.stop_idle_loaders()
        return self._seconds_until_next_round()

    def _seconds_until_next_round(self) -> float:
        due_at = [self._next_scan, self._next_housekeeping, self._queue.take_at]
        if self._reconciler.is_routing_outdated:
            due_at.append(self._next_publication)
        if self._workers.has_waiting_builds:
            due_at.append(self._clock() + LATE_BUILD_CHECK_S)
        return max(min(due_at) - self._clock(), 0)

    def _scan_folder(self) -> None:
        is_small = len(self._folder) <= SMALL_FOLDER
        is_whole = self._is_scan_requested or self._is_folder_missing or is_small
        if is_whole:
            # Reset before the scan, so that an event during the scan causes another scan.
            self._is_scan_requested = False
        is_reliable = self._are_events_reliable and not self._folder.has_links
        now = self._clock()
        share = (now - self._scanned_at) / (SLOW_SCAN_S if is_reliable else FULL_SCAN_S)
        self._scanned_at = now
        try:
            changes = self._folder.look(1.0 if is_whole else share)
        except OSError as error:
            self._next_scan = self._clock() + POLL_S
            if not self._is_folder_missing:
                facts = {"folder": str(self._folder.path), "reason": error.strerror}
                _logger.error("tenants_folder.unreadable", extra=facts)
            self._is_folder_missing = True
            return
        self._is_folder_missing = False
        interval_s = POLL_S if is_reliable or is_small else PARTIAL_SCAN_S
        self._next_scan = self._clock() + (interval_s if changes.is_settled else SETTLE_S)
        for name in changes.appeared:
            run_step(partial(self._add, name), tenant=name)
        for name in changes.removed:
            run_step(partial(self._remove, name), tenant=name)
        for content in changes.changed:
            if content.path.stem in self._reconciler.files:
                self._queue.add(content)

    def _add(self, name: str) -> None:
        self._queue.add_name(name)
        self._reconciler.add(name)
        for _, state in self._operator_states.appear(name):
            self._reconciler.set_operator_state(name, state)
        if name in self._operator_states.unreadable:  # an operator may have disabled the tenant
            self._reconciler.set_operator_state(name, OperatorState(is_disabled=True))

    def _remove(self, name: str) -> None:
        self._queue.remove(name)
        self._operator_states.forget(name)
        self._reconciler.remove(name)
        self._last_good.forget(name)

    def _set_result(self, content: FileContent, result: ValidationResult) -> None:
        name = content.path.stem
        if not content.digest:
            self._folder.note_digest(name, result.digest, is_readable=isinstance(result, Tenant))
        self._reconciler.set_result(name, result)

    def _reconcile_due(self) -> None:
        for name in self._queue.take_due(is_starting=self._reconciler.is_starting):
            if not run_step(partial(self._reconciler.reconcile, name), tenant=name):
                mount = self._reconciler.files[name].mount
                mount.reject("This is a bug in Tenantry; please report it. See the log.", "")
            self._queue.mark_reconciled(name)

    def _publish_if_due(self) -> None:
        is_complete = not self._is_folder_missing and not self._queue.has_new_names
        is_first = is_complete and not self.is_ready.is_set()
        is_due = is_complete or self._clock() >= self._next_publication
        if is_first or (self._reconciler.is_routing_outdated and is_due):
            self._publish()
        if is_first:
            self._reconciler.end_start()
            # With `--only`, another host may serve the other tenants.
            self._last_good.end_start(
                self._last_good.claims if self._only else self._reconciler.files
            )
            self.on_growth()
            self.is_ready.set()
            self._note_progress()

    def _note_progress(self) -> None:
        if self._workers.restorable:
            # The last good version may have to replace a version that cannot be built.
            self._woken.set()
        self.on_progress()

    def _record_build(self, mount: Mount) -> None:
        self._eviction.note_built(mount)
        if mount.tenant is not None:
            self._last_good.note_built(mount.tenant)

    def _publish(self) -> None:
        self._next_publication = self._clock() + PUBLISH_INTERVAL_S
        self._router.replace(self._reconciler.take_mounts(), self._reconciler.closed_names())
        self.disabled = self._reconciler.disabled(self._operator_states.unreadable)
        self._unrouted += self._reconciler.withdrawn
        self._reconciler.withdrawn = []
        self._note_progress()

    def _do_housekeeping(self) -> None:
        self._next_housekeeping = self._clock() + POLL_S
        for mount in self._unrouted:
            self._close_mount(mount)
        self._unrouted = []
        names = self._reconciler.files
        share = 1.0 if len(names) <= SMALL_FOLDER else POLL_S / SLOW_SCAN_S
        for name, state in self._operator_states.look(names, share):
            run_step(partial(self._reconciler.set_operator_state, name, state), tenant=name)
        self._rebuilds.report_stuck()
        for name in self._rebuilds.due():
            run_step(partial(self._reconciler.reconcile, name), tenant=name)
        self._build_pool.start_threads()
        if self.is_ready.is_set():
            run_step(self._last_good.save)
        run_step(self._draining.check)
        run_step(self._evict)

    def _evict(self) -> None:
        for name in self._eviction.check():
            self.on_evicted(name)
        if self._eviction.take_growth():
            self.on_growth()

    def _close_mount(self, mount: Mount) -> None:
        """Close a mount that is no longer in the routing, so that no new request finds it."""
        instance = mount.close()
        if instance is not None:
            self._draining.add(mount.name, instance)

    def _new_mount(self, name: str) -> Mount:
        return Mount(
            name,
            None,
            self._build,
            wait_for_validation=self._wait_for_validation,
            ask_for_validation=self._ask_for_validation,
            note_built=self._note_built,
            build_pool=self._build_pool,
            limits_of=self._limits_of,
        )

    def _new_quarantine(self, name: str, state: OperatorState) -> Quarantine | None:
        if not state.parked:
            return None
        return Quarantine(
            state.parked,
            state.times_parked,
            trial_lock_file(self._data_dir, name),
            lambda is_good: end_trial(self._data_dir, name, is_good=is_good),
            clock=self._clock,
        )
