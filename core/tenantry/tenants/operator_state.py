"""What is set beside a tenant's file: maintenance on or off, disabled or not, parked or not.

The first two are an operator's; a tenant is parked by the host, when it ends workers. One small
file per tenant, `<data>/<name>/levers.json`, written whole or not at all; every worker reads it
when it changes, and it survives restarts.
"""

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tenantry.errors import TenantryError
from tenantry.tenants.round_robin import Turns

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OperatorState:
    """The levers of one tenant."""

    maintenance: bool | str = False
    """True, or a message for the clients."""
    is_disabled: bool = False
    parked: str = ""
    """Why it is in quarantine; empty where it is not."""
    times_parked: int = 0
    """How often in a row: each time it stays twice as long."""


UNTOUCHED = OperatorState()


def levers_file(data_dir: Path, name: str) -> Path:
    """Return where a tenant's levers are; there is no file while they are untouched."""
    return data_dir / name / "levers.json"


def try_file(data_dir: Path, name: str) -> Path:
    """Return the file that is locked while one request tries a parked tenant out."""
    return data_dir / name / "parked.lock"


def end_try(data_dir: Path, name: str, *, is_good: bool) -> None:
    """Let a parked tenant back that was tried out, or park it for longer.

    Raises:
        TenantryError: its levers cannot be read or written; they are as they were then.
    """

    def settle(levers: OperatorState) -> OperatorState:
        if is_good or not levers.parked:
            return replace(levers, parked="", times_parked=0)
        return replace(levers, times_parked=levers.times_parked + 1)

    change_operator_state(data_dir, name, settle, _TRY_WAIT_S)
    event = "tenant.let_back" if is_good else "tenant.parked_longer"
    _logger.warning(event, extra={"tenant": name})


_TRY_WAIT_S = 1.0


def levers_stamp(data_dir: Path, name: str) -> int:
    """Return a number that changes when a tenant's levers do; 0 while they are untouched.

    Raises:
        OSError: the folder cannot be looked into.
    """
    return _stamp(f"{data_dir}/{name}/levers.json")  # a `Path` for each of 10,000 costs 60 ms


def _stamp(path: Path | str) -> int:
    try:
        info = os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return hash((info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino)) or 1


def read_operator_state(data_dir: Path, name: str) -> OperatorState:
    """Return a tenant's levers.

    Raises:
        TenantryError: the file is there and cannot be understood.
    """
    path = levers_file(data_dir, name)
    try:
        said = json.loads(path.read_bytes())
        maintenance, is_disabled = said["maintenance"], said["is_disabled"]
        parked, times = said.get("parked", ""), said.get("times_parked", 0)
    except FileNotFoundError:
        return UNTOUCHED
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"{path}: cannot be read ({type(error).__name__}); remove it, and pull again."
        raise TenantryError(text) from error
    are_typed = isinstance(maintenance, bool | str) and isinstance(is_disabled, bool)
    if not are_typed or not isinstance(parked, str) or not isinstance(times, int):
        raise TenantryError(f"{path}: has an ill-typed value; remove it, and pull again.")
    return OperatorState(maintenance, is_disabled, parked, times)


def write_levers(data_dir: Path, name: str, levers: OperatorState) -> None:
    """Set a tenant's levers: from now on for running workers, and for those to come.

    Raises:
        TenantryError: the folder cannot be written; the levers are as they were.
    """
    path = levers_file(data_dir, name)
    try:
        if levers == UNTOUCHED:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(path, json.dumps(asdict(levers)))
    except OSError as error:
        text = f"cannot write {path}: {error.strerror}; nothing was changed."
        raise TenantryError(text) from error
    with contextlib.suppress(OSError):  # a full disk: the workers find it by turns
        _replace(_bell(data_dir), name)


def change_operator_state(
    data_dir: Path,
    name: str,
    change: Callable[[OperatorState], OperatorState],
    wait_s: float | None = None,
) -> OperatorState:
    """Change a tenant's levers, and return them; of two at once, one waits for the other.

    Args:
        data_dir: where they are.
        name: the tenant's.
        change: from what they are to what they shall be; called while nobody else changes any.
        wait_s: how long to wait for others who change some; None for as long as they take.

    Raises:
        TenantryError: they cannot be read or written, or others did not end; they are as they were.
    """
    with _alone(lock_file(data_dir), wait_s):
        levers = change(read_operator_state(data_dir, name))
        write_levers(data_dir, name, levers)
    return levers


def lock_file(data_dir: Path) -> Path:
    """Return the file that who changes levers has locked."""
    return data_dir / ".levers.lock"


@contextlib.contextmanager
def _alone(path: Path, wait_s: float | None) -> Iterator[None]:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        text = f"cannot write {path}: {error.strerror}; nothing was changed."
        raise TenantryError(text) from error
    try:
        _lock(fd, path, wait_s)
        yield
    finally:
        os.close(fd)  # which unlocks it


def _lock(fd: int, path: Path, wait_s: float | None) -> None:
    if wait_s is None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                text = f"{path} is locked by another process; nothing was changed."
                raise TenantryError(text) from error
            time.sleep(_LOCK_POLL_S)
        else:
            return


_LOCK_POLL_S = 0.05


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    unfinished = path.with_name(f".levers.{os.getpid()}.new")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def _bell(data_dir: Path) -> Path:
    """Return the file that is replaced after levers were: no tenant's name begins with a dot."""
    return data_dir / ".levers"


class OperatorStateWatch:
    """Tells whose levers have changed. For one thread."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._stamps: dict[str, int] = {}  # of those that are not untouched
        self.unreadable: dict[str, str] = {}
        """Name → why its levers cannot be read."""
        self._turns = Turns()
        self._bell = -1

    def look(
        self, names: Collection[str], share: float = 1.0
    ) -> Iterator[tuple[str, OperatorState]]:
        """Yield the levers of those whose changed since the last look.

        Those that cannot be read stay as they were told; the log says why, once.

        Args:
            names: the tenants.
            share: of them to look at, each in its turn: all when `write_levers` was called since
                the last look. What was done to the files by hand is seen in its turn.
        """
        has_rung = share < 1 and self._has_rung()
        for name in self._turns.take(names, 1 if has_rung else share):
            yield from self._look_at(name)

    def appear(self, name: str) -> Iterator[tuple[str, OperatorState]]:
        """Yield the levers of a tenant that was not there before, unless they are untouched."""
        self.forget(name)
        return self._look_at(name)

    def _look_at(self, name: str) -> Iterator[tuple[str, OperatorState]]:
        try:
            stamp = levers_stamp(self._data_dir, name)
            if stamp == self._stamps.get(name, 0):
                return
            self._remember(name, stamp)
            levers = read_operator_state(self._data_dir, name)
        except (OSError, TenantryError) as error:
            self._note_unreadable(name, error)
        else:
            self.unreadable.pop(name, None)
            yield name, levers

    def _has_rung(self) -> bool:
        stamp = _stamp(_bell(self._data_dir))
        is_new, self._bell = stamp != self._bell, stamp
        return is_new

    def forget(self, name: str) -> None:
        """Remember nothing of a name that is gone."""
        self._stamps.pop(name, None)
        self.unreadable.pop(name, None)

    def _remember(self, name: str, stamp: int) -> None:
        if stamp:
            self._stamps[name] = stamp
        else:
            self._stamps.pop(name, None)

    def _note_unreadable(self, name: str, error: Exception) -> None:
        self.unreadable[name] = str(error)
        if isinstance(error, TenantryError) or self._stamps.get(name) != _UNREADABLE:
            _logger.error("levers.unreadable", extra={"tenant": name, "reason": str(error)})
        if isinstance(error, OSError):
            self._stamps[name] = _UNREADABLE


_UNREADABLE = -1
"""Stands for the stamp of levers that cannot be looked at."""
