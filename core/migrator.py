"""A process that migrates databases, as the one that started it sees it.

Whatever a migration does to that process, raise, hang or end it, is a result here.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from core.database_url import parse_database_url
from core.migration_children import Child, Nursery, SilentError
from core.revisions import Branch, compare, look, one_line, shown

TIMEOUT_S = 600.0
"""How long the migrations of one database may take."""

LOCK_WAIT_S = 60.0
"""How long to wait for another run that migrates the same database."""

ANSWER_MARGIN_S = 30.0
"""What connecting may take on top of waiting for the lock."""


@dataclass(frozen=True)
class Target:
    """A tenant's database, and what its code wants of it."""

    tenant: str
    url: str
    branches: tuple[Branch, ...]
    lock_file: Path
    """What is locked where the engine has no lock of its own."""
    folder: Path | None = None
    """Where a default database is, whose folder is made with it."""
    goal: frozenset[str] | None = None
    """Where `upgrade` brings it; None: to the heads of its code."""


@dataclass(frozen=True)
class Result:
    """What became of one database."""

    state: Literal["done", "was there", "ahead", "unreachable", "failed"]
    before: frozenset[str] | None = None
    """What it was at; None when that could not be told."""
    after: frozenset[str] | None = None
    reason: str = ""


def target_of(tenant: str, url: str, branches: tuple[Branch, ...], data_dir: Path) -> Target:
    """Return the target of a tenant; makes nothing."""
    parsed = parse_database_url(url)
    lock_file = data_dir / ".migrations" / f"{tenant}.lock"
    folder = None
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        path = Path(parsed.database.removeprefix("file:"))
        if path.parent == data_dir / tenant:
            folder = path.parent
        lock_file = path.with_name(f"{path.name}.migrating")
    return Target(tenant, url, branches, lock_file, folder)


class Migrator:
    """Migrates one database at a time, in a process of its own, until the end of a `with` block.

    For one thread. The process starts with the first database, and again after one has ended it.

    Args:
        nursery: where its process comes from; stays open.
        timeout_s: how long the migrations of one database may take.
        lock_wait_s: how long to wait for another run that migrates the same one.
    """

    def __init__(
        self, nursery: Nursery, timeout_s: float = TIMEOUT_S, lock_wait_s: float = LOCK_WAIT_S
    ) -> None:
        self._nursery = nursery
        self._timeout_s = timeout_s
        self._lock_wait_s = lock_wait_s
        self._child: Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_child()

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    def upgrade(self, target: Target, begins: Callable[[frozenset[str]], None]) -> Result:
        """Bring a database to its goal. Raises nothing for what a migration does.

        Args:
            target: the database.
            begins: called under the database's lock with what it is at, before it is changed.
        """
        return self._do(target, begins, None)

    def take_back(
        self,
        target: Target,
        came_to: Collection[str],
        goal: Collection[str],
        begins: Callable[[frozenset[str]], None],
    ) -> Result:
        """Bring a database from `came_to` back to `goal`; refused if it is at neither."""
        return self._do(target, begins, (sorted(came_to), sorted(goal)))

    def _do(
        self,
        target: Target,
        begins: Callable[[frozenset[str]], None],
        take_back: tuple[list[str], list[str]] | None,
    ) -> Result:
        request = {
            "tenant": target.tenant,
            "url": target.url,
            "endpoints": [branch.endpoint for branch in target.branches],
            "lock_file": str(target.lock_file),
            "lock_wait_s": self._lock_wait_s,
            "take_back": take_back,
            "goal": None if target.goal is None else sorted(target.goal),
        }
        try:
            if target.folder is not None:
                target.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            return Result("failed", None, None, f"{target.folder}: {error.strerror}")
        before: frozenset[str] | None = None
        timeout_s = self._lock_wait_s + ANSWER_MARGIN_S
        try:
            if self._child is None:
                self._child = self._nursery.fork()
            child = self._child
            child.write(request)
            said = child.read(timeout_s)
            if said["state"] == "begins":
                before = frozenset(said["current"])
                begins(before)
                child.write({})
                timeout_s = self._timeout_s
                said = child.read(timeout_s)
        except SilentError:
            return self._lost(target, before, timeout_s)
        except BaseException:
            self._end_child()  # it waits for an answer that will not come
            raise
        return _result(target, before, said)

    def _lost(self, target: Target, before: frozenset[str] | None, timeout_s: float) -> Result:
        """Say what has become of a database whose migration ended or hung the process."""
        child, self._child = self._child, None
        how = "did not start"
        if child is not None:
            has_ended = child.has_ended()
            how = f"did not finish in {timeout_s:g} s"
            ended = child.kill()
            how = f"ended its process ({ended})" if has_ended else how
        if before is None:
            return Result("failed", None, None, f"the process that migrates {how}")
        try:
            rows = look(parse_database_url(target.url))
        except Exception as error:  # noqa: BLE001 - whatever a driver raises
            return Result("failed", before, None, f"its migration {how}; {one_line(error)}")
        after = compare(target.branches, rows).current
        is_whole = after == before and target.url.startswith(("postgresql", "sqlite"))
        reason = _advice(target, f"its migration {how}", after, is_whole=is_whole)
        return Result("failed", before, after, reason)


def _result(target: Target, before: frozenset[str] | None, said: dict[str, Any]) -> Result:
    if said["state"] == "was there":
        current = frozenset(said["current"])
        return Result("was there", current, current)
    if said["state"] == "done":
        return Result("done", before, frozenset(said["current"]))
    if before is None:  # nothing was begun
        return Result(said["state"], None, None, f"{said['reason'].rstrip('.')}.")
    return Result(
        "failed", before, before, _advice(target, said["reason"], before, said["is_whole"])
    )


def _advice(target: Target, what: str, at: frozenset[str], is_whole: bool) -> str:
    if is_whole:
        return f"{what}; the database was left as it was."
    return (
        f"{what}; what ran before that stays, and the database says that it is at {shown(at)}: "
        "finish the migration by hand or take back what it did, or restore the backup, then: "
        f"tenantry db upgrade --tenant {target.tenant}."
    )
