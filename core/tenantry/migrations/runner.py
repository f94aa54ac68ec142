"""Migrates one database after another in a child process.

If a migration ends or blocks the child process, the runner still returns a result.
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from tenantry.database.options import NO_OPTIONS
from tenantry.database.url import parse_database_url
from tenantry.migrations.process import (
    MigrationProcess,
    MigrationReply,
    MigrationRequest,
    MigrationState,
    OnStart,
    ProcessEndedError,
)
from tenantry.migrations.revisions import Branch, compare, format_revisions, heads_of
from tenantry.migrations.version_table import describe_unreachable, read_versions
from tenantry.private_code.snapshot import used_snapshot

TIMEOUT_S = 600.0
"""Time limit in seconds for the migrations of one database."""

LOCK_TIMEOUT_S = 60.0
"""Maximum seconds to wait while another process migrates the same database."""

START_TIMEOUT_S = 30.0
"""Maximum seconds for starting the process and connecting, without the wait for the lock."""


@dataclass(frozen=True)
class MigrationTarget:
    """The database of a tenant, and the revisions in the tenant's code."""

    tenant: str
    url: str
    branches: tuple[Branch, ...]
    lock_file: Path
    """The file to lock for engines other than PostgreSQL."""
    folder: Path | None = None
    """The folder of a default database, or None for another database.

    A migration creates a missing folder.
    """
    destination: frozenset[str] | None = None
    """The revisions to upgrade to, or None for the heads of the code."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The tenant's `DATABASE_OPTIONS`."""
    data_dir: Path | None = None
    """The folder of the journal, or None if the journal does not record the migration."""
    is_foreseeing: bool = False
    """Whether to collect what PostgreSQL would refuse."""

    @property
    def heads(self) -> frozenset[str]:
        """The newest revisions in the code."""
        return heads_of(self.branches)


def migration_target(
    tenant: str,
    url: str,
    branches: tuple[Branch, ...],
    data_dir: Path,
    options: Mapping[str, Any] = NO_OPTIONS,
) -> MigrationTarget:
    """Return the migration target of a tenant, without creating a file or a folder."""
    parsed = parse_database_url(url)
    lock_file = data_dir / ".migrations" / f"{tenant}.lock"
    folder = None
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        path = Path(parsed.database.removeprefix("file:"))
        folder = path.parent if path.parent == data_dir / tenant else None
        lock_file = path.with_name(f"{path.name}.migrating")
    return MigrationTarget(
        tenant, url, branches, lock_file, folder, options=options or NO_OPTIONS, data_dir=data_dir
    )


@dataclass(frozen=True)
class MigrationResult:
    """The result of a migration."""

    state: MigrationState
    before: frozenset[str] | None = None
    """The revisions of the database before the migration, or None if they are unknown."""
    after: frozenset[str] | None = None
    reason: str = ""
    refusals: tuple[str, ...] = ()
    """What PostgreSQL would refuse, if the target asks for it."""


@dataclass
class _Progress:
    """The progress of a migration."""

    timeout_s: float
    """The time limit of the migration's current phase."""
    before: frozenset[str] | None = None
    """The revisions of the database when the migration started, or None."""
    has_committed: bool = False
    """Whether the migration has sent or was about to send a COMMIT."""


class MigrationRunner:
    """Migrates one database after another. The end of the `with` block ends the child process.

    The child process starts with the first migration. If a migration ends the child process, the
    next migration starts a new process. Only `kill()` is thread-safe.
    """

    def __init__(
        self, timeout_s: float = TIMEOUT_S, lock_timeout_s: float = LOCK_TIMEOUT_S
    ) -> None:
        self._timeout_s = timeout_s
        self._lock_timeout_s = lock_timeout_s
        self._process: MigrationProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_process()

    def _close_process(self) -> str:
        process, self._process = self._process, None
        return "" if process is None else process.close()

    def kill(self) -> None:
        """End the running migration, which the database rolls back. Thread-safe."""
        process = self._process
        if process is not None:
            process.kill()

    def upgrade(self, target: MigrationTarget, on_start: OnStart | None = None) -> MigrationResult:
        """Upgrade a database.

        Args:
            target: the database, and the revisions in the code.
            on_start: a function that is called before the database is changed.
        """
        return self._run(target, target.destination, on_start=on_start)

    def downgrade(
        self,
        target: MigrationTarget,
        current: Collection[str],
        destination: Collection[str],
    ) -> MigrationResult:
        """Downgrade a database.

        If the database is not at the revisions `current`, this method fails.
        """
        return self._run(target, frozenset(destination), downgrade_from=sorted(current))

    def _run(
        self,
        target: MigrationTarget,
        destination: frozenset[str] | None,
        *,
        downgrade_from: list[str] | None = None,
        on_start: OnStart | None = None,
    ) -> MigrationResult:
        snapshot = used_snapshot()
        request = MigrationRequest(
            url=target.url,
            options=dict(target.options),
            is_foreseeing=target.is_foreseeing,
            tenant=target.tenant,
            endpoints=[branch.endpoint for branch in target.branches if not branch.is_of_app],
            migrations=next((one.endpoint for one in target.branches if one.is_of_app), None),
            app_dir=target.branches[0].app_dir if target.branches else None,
            lock_file=str(target.lock_file),
            lock_timeout_s=self._lock_timeout_s,
            destination=None if destination is None else sorted(destination),
            downgrade_from=downgrade_from,
            code_snapshot=None if snapshot is None else str(snapshot.folder),
            folders_without_code=[] if snapshot is None else sorted(snapshot.excluded),
        )
        try:
            if target.folder is not None:
                target.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            reason = f"cannot create its folder {target.folder}: {error.strerror}."
            return MigrationResult("failed", reason=reason)
        progress = _Progress(self._lock_timeout_s + START_TIMEOUT_S)
        try:
            reply = self._exchange(request, progress, on_start)
        except (ProcessEndedError, TimeoutError) as error:
            reply = self._lost_reply(target, progress, error)
        except BaseException:
            self._close_process()  # the child process is still waiting for an answer to `started`
            raise
        if request.migrations is not None:
            self._close_process()  # the application may have left anything in the process
        result = _result(target, destination, progress.before, reply)
        return replace(result, refusals=tuple(reply.refusals))

    def _exchange(
        self, request: MigrationRequest, progress: _Progress, on_start: OnStart | None
    ) -> MigrationReply:
        """Send a request, follow the migration, and return its result."""
        if self._process is None:
            self._process = MigrationProcess()
        process = self._process
        process.send(asdict(request))
        deadline = time.monotonic() + progress.timeout_s
        while True:
            message = process.receive(deadline - time.monotonic())
            if message["event"] == "finished":
                return MigrationReply(**message["reply"])
            if message["event"] == "committing":
                progress.has_committed = True
                continue
            progress.before = frozenset(message["current"])
            progress.timeout_s = self._timeout_s
            if on_start is not None:
                on_start(progress.before)
            process.send({})
            deadline = time.monotonic() + progress.timeout_s

    def _lost_reply(
        self, target: MigrationTarget, progress: _Progress, error: Exception
    ) -> MigrationReply:
        """Create a reply for a child process that has ended or does not answer."""
        exit_status = self._close_process()
        if not exit_status:
            reason = f"cannot start a process for its migration: {error.__cause__}"
        elif isinstance(error, TimeoutError):
            verb = "start" if progress.before is None else "finish"
            reason = f"its migration did not {verb} in {progress.timeout_s:g} s"
        else:
            reason = f"its migration ended its process ({exit_status})"
        is_transactional = target.url.startswith(("postgresql", "sqlite"))
        return MigrationReply(
            "failed", reason=reason, is_rolled_back=is_transactional and not progress.has_committed
        )


def _result(
    target: MigrationTarget,
    destination: frozenset[str] | None,
    before: frozenset[str] | None,
    reply: MigrationReply,
) -> MigrationResult:
    """Return the result of a migration, and read the revisions of the database after a failure."""
    if reply.state in ("migrated", "unchanged"):
        revisions = frozenset(reply.revisions)
        return MigrationResult(reply.state, revisions if before is None else before, revisions)
    reason = reply.reason.rstrip(".")
    if before is None:  # the migration has not begun
        return MigrationResult(reply.state, reason=f"{reason}.")
    try:
        status = compare(
            target.branches, read_versions(parse_database_url(target.url), target.options)
        )
    except Exception as error:  # noqa: BLE001 - drivers raise many classes of exceptions
        text = f"{reason}; the state of the database is unknown: {describe_unreachable(error)}"
        return MigrationResult("failed", before, reason=text)
    after = status.current
    if status.state == "at head" if destination is None else after == destination:
        # The migration failed after its last COMMIT.
        return MigrationResult("migrated", before, after)
    advice = _advice(target.tenant, after)
    if reply.is_rolled_back and after == before:
        advice = "the database was left as it was."
    return MigrationResult("failed", before, after, f"{reason}; {advice}")


def _advice(tenant: str, revisions: frozenset[str]) -> str:
    return (
        "its earlier commits remain, and the database is at "
        f"{format_revisions(revisions)}: finish or undo the migration by hand, or restore a "
        f"backup, then run: tenantry db upgrade --tenant {tenant}."
    )
