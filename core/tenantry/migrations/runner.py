"""A process that migrates databases, as the one that started it sees it.

Whatever a migration does to that process, raise, hang or end it, is a result here.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from tenantry.database.url import parse_database_url
from tenantry.migrations.children import Child, Nursery, SilentError
from tenantry.migrations.revisions import Branch, compare, look, shown, unreachable

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


@dataclass
class _Course:
    """How far a migration came, as its process told; of one thread."""

    timeout_s: float
    """For what it is at."""
    before: frozenset[str] | None = None
    has_committed: bool = False
    """Or was about to."""


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


class MigrationRunner:
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
            reason = f"its folder {target.folder} cannot be made: {error.strerror}."
            return Result("failed", None, None, reason)
        course = _Course(self._lock_wait_s + ANSWER_MARGIN_S)
        try:
            said = self._ask(request, begins, course)
        except SilentError:
            said = self._lost(target, course)
        except BaseException:
            self._end_child()  # it waits for an answer that will not come
            raise
        goal = target.goal if take_back is None else frozenset(take_back[1])
        return _result(target, goal, course.before, said)

    def _ask(
        self,
        request: dict[str, object],
        begins: Callable[[frozenset[str]], None],
        course: _Course,
    ) -> dict[str, Any]:
        if self._child is None:
            self._child = self._nursery.fork()
        child = self._child
        child.write(request)
        said = child.read(course.timeout_s)
        if said["state"] == "begins":
            course.before = frozenset(said["current"])
            begins(course.before)
            child.write({})
            course.timeout_s = self._timeout_s
            deadline = time.monotonic() + self._timeout_s
            while (said := child.read(deadline - time.monotonic()))["state"] == "commits":
                course.has_committed = True
        return said

    def _lost(self, target: Target, course: _Course) -> dict[str, Any]:
        """Return what a process would have said whose migration ended it, or hangs."""
        child, self._child = self._child, None
        how = "did not start"
        if child is not None:
            has_ended = child.has_ended()
            how = f"did not finish in {course.timeout_s:g} s"
            ended = child.kill()
            how = f"ended its process ({ended})" if has_ended else how
        who = "the process that migrates" if course.before is None else "its migration"
        is_whole = not course.has_committed and target.url.startswith(("postgresql", "sqlite"))
        return {"state": "failed", "reason": f"{who} {how}", "is_whole": is_whole}


def _result(
    target: Target,
    goal: frozenset[str] | None,
    before: frozenset[str] | None,
    said: dict[str, Any],
) -> Result:
    """Return what became of a database: after a failure, by what it says itself."""
    if said["state"] == "was there":
        current = frozenset(said["current"])
        return Result("was there", current, current)
    if said["state"] == "done":
        return Result("done", before, frozenset(said["current"]))
    reason = said["reason"].rstrip(".")
    if before is None:  # nothing was begun
        return Result(said["state"], None, None, f"{reason}.")
    try:
        found = compare(target.branches, look(parse_database_url(target.url)))
    except Exception as error:  # noqa: BLE001 - whatever a driver raises
        text = f"{reason}; nobody knows where that left the database, for {unreachable(error)}"
        return Result("failed", before, None, text)
    if found.state == "at head" if goal is None else found.current == goal:
        return Result("done", before, found.current)  # what came after its end failed
    is_whole = said["is_whole"] and found.current == before
    return Result(
        "failed", before, found.current, _advice(target, reason, found.current, is_whole=is_whole)
    )


def _advice(target: Target, what: str, at: frozenset[str], *, is_whole: bool) -> str:
    if is_whole:
        return f"{what}; the database was left as it was."
    return (
        f"{what}; what was committed before that stays, and the database says that it is at "
        f"{shown(at)}: finish the migration by hand or take back what it did, or restore the "
        f"backup, then: tenantry db upgrade --tenant {target.tenant}."
    )
