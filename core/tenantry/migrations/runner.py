"""Migrates one database at a time, in a child process.

The runner returns a result even if a migration ends or blocks the child process.
"""

import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

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

TIMEOUT_S = 600.0
"""Time limit for the migrations of one database."""

LOCK_TIMEOUT_S = 60.0
"""Time limit for waiting while another process migrates the same database."""

START_TIMEOUT_S = 30.0
"""Time limit for the process to start and connect, in addition to the wait for the lock."""


@dataclass(frozen=True)
class MigrationTarget:
    """A tenant's database, and the revisions that the tenant's code has."""

    tenant: str
    url: str
    branches: tuple[Branch, ...]
    lock_file: Path
    """The file to lock if the engine is not PostgreSQL."""
    folder: Path | None = None
    """The folder of a default database. A migration creates the folder if the folder does not
    exist."""
    destination: frozenset[str] | None = None
    """The revisions to upgrade the database to; None means the heads of the code."""

    @property
    def heads(self) -> frozenset[str]:
        """The revisions that the code needs."""
        return heads_of(self.branches)


def migration_target(
    tenant: str, url: str, branches: tuple[Branch, ...], data_dir: Path
) -> MigrationTarget:
    """Return the migration target for a tenant's database, without creating a file or folder."""
    parsed = parse_database_url(url)
    lock_file = data_dir / ".migrations" / f"{tenant}.lock"
    folder = None
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        path = Path(parsed.database.removeprefix("file:"))
        folder = path.parent if path.parent == data_dir / tenant else None
        lock_file = path.with_name(f"{path.name}.migrating")
    return MigrationTarget(tenant, url, branches, lock_file, folder)


@dataclass(frozen=True)
class MigrationResult:
    """How the migration of one database ended."""

    state: MigrationState
    before: frozenset[str] | None = None
    """The database's revisions before the migration; None if the revisions are unknown."""
    after: frozenset[str] | None = None
    reason: str = ""


@dataclass
class _Progress:
    """The progress of one database's migration."""

    timeout_s: float
    """The time limit of the current phase of the migration."""
    before: frozenset[str] | None = None
    """The database's revisions, once the migration has started."""
    has_committed: bool = False
    """Whether the migration has sent, or was about to send, a COMMIT."""


class MigrationRunner:
    """Migrates one database at a time. The end of a `with` block ends the migration process.

    The migration process starts with the first database, and starts again after a migration has
    ended the process. Call all methods from one thread; only `kill()` is thread-safe.
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
        """End the running migration, if any. The engine rolls the migration back. Thread-safe."""
        process = self._process
        if process is not None:
            process.kill()

    def upgrade(self, target: MigrationTarget, on_start: OnStart | None = None) -> MigrationResult:
        """Upgrade a database to the target's destination.

        Args:
            target: the database to upgrade, and the revisions of the code.
            on_start: called before the database is changed.
        """
        return self._run(target, target.destination, on_start=on_start)

    def downgrade(
        self,
        target: MigrationTarget,
        current: Collection[str],
        destination: Collection[str],
    ) -> MigrationResult:
        """Downgrade a database from `current` to `destination`; fail for any other revisions."""
        return self._run(target, frozenset(destination), downgrade_from=sorted(current))

    def _run(
        self,
        target: MigrationTarget,
        destination: frozenset[str] | None,
        *,
        downgrade_from: list[str] | None = None,
        on_start: OnStart | None = None,
    ) -> MigrationResult:
        request = MigrationRequest(
            url=target.url,
            endpoints=[branch.endpoint for branch in target.branches],
            lock_file=str(target.lock_file),
            lock_timeout_s=self._lock_timeout_s,
            destination=None if destination is None else sorted(destination),
            downgrade_from=downgrade_from,
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
            self._close_process()  # The process still waits for the line that follows `started`.
            raise
        return _result(target, destination, progress.before, reply)

    def _exchange(
        self, request: MigrationRequest, progress: _Progress, on_start: OnStart | None
    ) -> MigrationReply:
        """Send a request, follow the migration, and return the result of the migration."""
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
        """Return the reply for a migration process that has ended or does not answer."""
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
    """Return the result of a migration; after a failure, from the revisions in the database."""
    if reply.state in ("migrated", "unchanged"):
        revisions = frozenset(reply.revisions)
        return MigrationResult(reply.state, revisions if before is None else before, revisions)
    reason = reply.reason.rstrip(".")
    if before is None:  # If `before` is None, the migration has not started.
        return MigrationResult(reply.state, reason=f"{reason}.")
    try:
        status = compare(target.branches, read_versions(parse_database_url(target.url)))
    except Exception as error:  # noqa: BLE001 - whatever a driver raises
        text = f"{reason}; the state of the database is unknown: {describe_unreachable(error)}"
        return MigrationResult("failed", before, reason=text)
    after = status.current
    if status.state == "at head" if destination is None else after == destination:
        # The migration failed after the last COMMIT.
        return MigrationResult("migrated", before, after)
    advice = _advice(target.tenant, after)
    if reply.is_rolled_back and after == before:
        advice = "the database was left as it was."
    return MigrationResult("failed", before, after, f"{reason}; {advice}")


def _advice(tenant: str, revisions: frozenset[str]) -> str:
    return (
        "what it committed before that stays, and the database reports "
        f"{format_revisions(revisions)}: finish or undo the migration by hand, or restore a "
        f"backup, then run: tenantry db upgrade --tenant {tenant}."
    )
