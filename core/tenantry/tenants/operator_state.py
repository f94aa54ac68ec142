"""Operator state: the state of a tenant outside the tenant file (maintenance, disabled, parked).

Operators set maintenance and disable tenants with commands. The host parks a tenant whose requests
end worker processes. Each tenant's operator state is in one small file,
`<data>/<name>/operator_state.json`. A change replaces the file, and running workers read the new
file. A restart does not change the state.
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
from tenantry.tenants.round_robin import RoundRobin

_FILE_NAME = "operator_state.json"

_FORMER_FILE_NAME = "levers.json"
"""Name of the state file in earlier versions of Tenantry, which is read until the state changes."""

_TRIAL_WAIT_S = 1.0
"""Seconds that the end of a trial waits while another process changes a tenant's state."""

_LOCK_POLL_S = 0.05

_UNREADABLE = -1
"""Stamp of a state file whose folder cannot be read."""

MOVING_MESSAGE = "The tenant is being moved. Try again in a moment."
"""The response to clients while a command renames, removes or replaces the tenant."""

_MOVES_FOLDER = ".moving"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OperatorState:
    """The operator state of one tenant."""

    maintenance: bool | str = False
    """True, or the message that clients get during maintenance."""
    is_disabled: bool = False
    parked: str = ""
    """Why the host has parked the tenant; empty if the tenant is not parked."""
    times_parked: int = 0
    """Number of consecutive times that the host has parked the tenant. Each parking doubles the
    wait until the next trial request."""
    is_moving: bool = False
    """Whether a command moves the tenant now. No state file contains this field."""

    @property
    def effective_maintenance(self) -> bool | str:
        """The value of `maintenance` that applies now, which is `MOVING` while the tenant moves."""
        return MOVING_MESSAGE if self.is_moving else self.maintenance


DEFAULT_OPERATOR_STATE = OperatorState()


def operator_state_file(data_dir: Path, name: str) -> Path:
    """Return the path of a tenant's state file. The default state has no file."""
    return data_dir / name / _FILE_NAME


def operator_state_lock_file(data_dir: Path) -> Path:
    """Return the path of the file that is locked while the state of any tenant changes."""
    return data_dir / ".operator_state.lock"


def trial_lock_file(data_dir: Path, name: str) -> Path:
    """Return the path of the file that is locked while one request tests a parked tenant."""
    return data_dir / name / "parked.lock"


def move_mark(data_dir: Path, name: str) -> Path:
    """Return the path of the file that exists while a command moves a tenant."""
    return data_dir / _MOVES_FOLDER / name


def is_moving(data_dir: Path, name: str) -> bool:
    """Whether a command moves a tenant now, or was killed while the data was incomplete."""
    while True:
        try:
            # The path is a string, because `Path` objects for 10,000 tenants take 60 ms.
            fd = os.open(f"{data_dir}/{_MOVES_FOLDER}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            if b'"is_partial": true' in os.read(fd, 1 << 16):
                return True
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return False
            # The command has replaced or removed the file since `os.open`.
        except BlockingIOError:
            return True  # the command holds the lock until it ends
        finally:
            os.close(fd)


def operator_state_stamp(data_dir: Path, name: str) -> int:
    """Return a number that changes when a tenant's state changes; 0 for the default state.

    Raises:
        OSError: the tenant's folder cannot be read.
    """
    # The paths are strings, because `Path` objects for 10,000 tenants take 60 ms.
    folder = f"{data_dir}/{name}"
    return _stamp(f"{folder}/{_FILE_NAME}") or _stamp(f"{folder}/{_FORMER_FILE_NAME}")


def _stamp(path: Path | str) -> int:
    try:
        info = os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return hash((info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino)) or 1


def read_operator_state(data_dir: Path, name: str) -> OperatorState:
    """Return a tenant's operator state.

    Raises:
        TenantryError: the state file exists, but cannot be read or has unexpected content.
    """
    path = operator_state_file(data_dir, name)
    remedy = "remove the file, then repeat the command (maintenance, disable)."
    try:
        content = _content(data_dir, name)
        if content is None:
            return DEFAULT_OPERATOR_STATE
        state = OperatorState(**json.loads(content))
    except (OSError, ValueError, TypeError) as error:
        text = f"{path}: cannot be read ({type(error).__name__}); {remedy}"
        raise TenantryError(text) from error
    if not all(isinstance(getattr(state, field), kind) for field, kind in _FIELD_TYPES.items()):
        raise TenantryError(f"{path}: a value has the wrong type; {remedy}")
    return state


_FIELD_TYPES = {
    "maintenance": bool | str,
    "is_disabled": bool,
    "parked": str,
    "times_parked": int,
}


def effective_operator_state(data_dir: Path, name: str) -> tuple[OperatorState, str]:
    """Return a tenant's state and, if its state file cannot be read, the reason.

    A tenant whose state cannot be read counts as disabled, as it does when a host starts.
    """
    try:
        state = read_operator_state(data_dir, name)
        return replace(state, is_moving=is_moving(data_dir, name)), ""
    except TenantryError as error:
        return OperatorState(is_disabled=True), f"tenant {name!r} is disabled: {error}"


def _content(data_dir: Path, name: str) -> bytes | None:
    for file_name in (_FILE_NAME, _FORMER_FILE_NAME):
        # Most tenants have the default state, and therefore no state file.
        with contextlib.suppress(FileNotFoundError):
            return (data_dir / name / file_name).read_bytes()
    return None


def write_operator_state(data_dir: Path, name: str, state: OperatorState) -> None:
    """Set a tenant's state, in running workers and in workers that start later.

    Raises:
        TenantryError: the folder is not writable. The state is unchanged.
    """
    path = operator_state_file(data_dir, name)
    try:
        if state != DEFAULT_OPERATOR_STATE:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fields = {key: value for key, value in asdict(state).items() if key != "is_moving"}
            _replace_file(path, json.dumps(fields))
        path.with_name(_FORMER_FILE_NAME).unlink(missing_ok=True)
        if state == DEFAULT_OPERATOR_STATE:
            path.unlink(missing_ok=True)
    except OSError as error:
        text = f"cannot write {path}: {error.strerror}; nothing was changed."
        raise TenantryError(text) from error
    announce_change(data_dir, name)


def announce_change(data_dir: Path, name: str) -> None:
    """Tell running workers that the state of a tenant has changed."""
    # If the disk is full, no marker is written, and workers find the change by polling.
    with contextlib.suppress(OSError):
        _replace_file(_change_marker(data_dir), name)


def change_operator_state(
    data_dir: Path,
    name: str,
    change: Callable[[OperatorState], OperatorState],
    wait_s: float | None = None,
) -> OperatorState:
    """Change a tenant's state and return the new state. Concurrent changes wait for each other.

    Args:
        data_dir: the host's data folder.
        name: the tenant's name.
        change: returns the new state for the current state; called while the lock is held.
        wait_s: seconds to wait for another process's change; None means no limit.

    Raises:
        TenantryError: the state cannot be read or written, or another process holds the lock for
            longer than `wait_s`. The state is unchanged.
    """
    with _locked(operator_state_lock_file(data_dir), wait_s):
        state = change(read_operator_state(data_dir, name))
        write_operator_state(data_dir, name, state)
    return state


def end_trial(data_dir: Path, name: str, *, is_good: bool) -> None:
    """Unpark a tenant after a successful trial, or extend its quarantine after a failed trial.

    Raises:
        TenantryError: the state cannot be read or written. The state is unchanged.
    """

    def after_trial(state: OperatorState) -> OperatorState:
        if is_good or not state.parked:
            return replace(state, parked="", times_parked=0)
        return replace(state, times_parked=state.times_parked + 1)

    change_operator_state(data_dir, name, after_trial, _TRIAL_WAIT_S)
    event = "tenant.unparked" if is_good else "tenant.parked_longer"
    _logger.warning(event, extra={"tenant": name})


@contextlib.contextmanager
def _locked(path: Path, wait_s: float | None) -> Iterator[None]:
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
        os.close(fd)  # closing also releases the lock


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


def _replace_file(path: Path, text: str) -> None:
    unfinished = path.with_name(f".operator_state.{os.getpid()}.new")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError:
        # The unfinished file may not exist. The first error is more important.
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def _change_marker(data_dir: Path) -> Path:
    """Return the marker file, which every change of a tenant's operator state replaces."""
    return data_dir / ".operator_state"


class OperatorStateWatch:
    """Reports the tenants whose states have changed. Not thread-safe."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._stamps: dict[str, int] = {}  # stamps of the states that are not the default
        self.unreadable: dict[str, str] = {}
        """The reason for each tenant whose state cannot be read, by tenant name."""
        self._round_robin = RoundRobin()
        self._marker_stamp = -1

    def look(
        self, names: Collection[str], share: float = 1.0
    ) -> Iterator[tuple[str, OperatorState]]:
        """Yield the states that have changed since the last scan.

        A state that cannot be read is logged once, and the tenant's last state stays in force.

        Args:
            names: the names of the tenants.
            share: the part of the tenants to scan (0 to 1), by round robin, which finds state files
                that were edited by hand. If `write_operator_state` was called since the last scan,
                the scan covers all tenants.
        """
        is_marked = share < 1 and self._has_marker_changed()
        for name in self._round_robin.take(names, 1 if is_marked else share):
            yield from self._look_at(name)

    def appear(self, name: str) -> Iterator[tuple[str, OperatorState]]:
        """Yield the state of a new tenant, unless it is the default state."""
        self.forget(name)
        return self._look_at(name)

    def forget(self, name: str) -> None:
        """Forget a tenant whose file was removed."""
        self._stamps.pop(name, None)
        self.unreadable.pop(name, None)

    def _look_at(self, name: str) -> Iterator[tuple[str, OperatorState]]:
        try:
            is_held = is_moving(self._data_dir, name)
            # A build that began before the move may end during the move, so each scan holds the
            # tenant again.
            stamp = time.monotonic_ns() if is_held else operator_state_stamp(self._data_dir, name)
            if stamp == self._stamps.get(name, 0):
                return
            self._remember(name, stamp)
            state = replace(read_operator_state(self._data_dir, name), is_moving=is_held)
        except (OSError, TenantryError) as error:
            self._note_unreadable(name, error)
        else:
            self.unreadable.pop(name, None)
            yield name, state

    def _has_marker_changed(self) -> bool:
        stamp = _stamp(_change_marker(self._data_dir))
        has_changed, self._marker_stamp = stamp != self._marker_stamp, stamp
        return has_changed

    def _remember(self, name: str, stamp: int) -> None:
        if stamp:
            self._stamps[name] = stamp
        else:
            self._stamps.pop(name, None)

    def _note_unreadable(self, name: str, error: Exception) -> None:
        self.unreadable[name] = str(error)
        if isinstance(error, TenantryError) or self._stamps.get(name) != _UNREADABLE:
            extra = {"tenant": name, "reason": str(error)}
            _logger.error("operator_state.unreadable", extra=extra)
        if isinstance(error, OSError):
            self._stamps[name] = _UNREADABLE
