"""The journal of unfinished moves: one file for each tenant that a command moves.

The file `<data>/.moving/NAME` exists from the beginning to the end of a move, and is locked while
the command runs. Workers answer 503 for a tenant whose file is locked. When the command is killed,
the kernel releases the lock, and the tenant serves again. However, if `is_partial` is set, the
tenant answers 503 until the command has run again.
"""

import fcntl
import json
import os
import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from tenantry.errors import TenantryError
from tenantry.tenants.operator_state import announce_change, move_mark

LOCK_WAIT_S = 1.0
"""Maximum seconds to wait for a lock. A worker that reads the file holds the lock for
microseconds."""

LOCK_POLL_S = 0.01


@dataclass(frozen=True)
class Move:
    """One move of a tenant, as the journal records it."""

    operation: str
    """The command: `rename`, `remove` or `restore --replace`."""
    name: str
    new: str = ""
    """The new name of a renamed tenant."""
    capsule: str = ""
    """The path of the capsule that replaces a tenant."""
    options: str = ""
    """The options of the command that replaces a tenant, without a password."""
    started: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    """The time when the move began, in UTC, which is part of the names of folders."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Maps each secret that the move removes to the new secret, or to ""."""
    is_committed: bool = False
    """Whether the data of a removed tenant can be deleted, because its capsule is complete."""
    is_partial: bool = False
    """Whether the data of the tenant may be incomplete, so that the tenant must not serve."""

    @property
    def command(self) -> str:
        """The command that completes the move."""
        if self.operation == "rename":
            return f"tenantry rename {self.name} {self.new}"
        if self.operation == "remove":
            return f"tenantry remove {self.name}"
        file = shlex.quote(self.capsule) if self.capsule else "FILE"
        return f"tenantry restore {file} --as {self.name} --replace {self.options}".rstrip()

    @property
    def explanation(self) -> str:
        """What is unfinished, and what the operator has to do."""
        state = ", so the tenant answers 503" if self.is_partial else ""
        return f"an earlier command was killed{state}; to complete it, run: {self.command}"

    def is_same(self, other: "Move") -> bool:
        """Whether two runs of a command describe the same move."""
        return (self.operation, self.name, self.new) == (other.operation, other.name, other.new)


class MoveJournal:
    """The journal of one move, which is locked during a `with` block.

    The end of the block removes the journal, unless an exception leaves the block after a call of
    `keep`. In that case, the next run of the same command completes the move.

    Args:
        data_dir: the host's `DATA_DIR`.
        move: the move that begins. If the journal contains the same move, that move continues.

    Raises:
        TenantryError: another process moves the tenant, or another move of the tenant is
            unfinished.
    """

    def __init__(self, data_dir: Path, move: Move) -> None:
        self._data_dir = data_dir
        self._names = sorted({name for name in (move.name, move.new) if name})
        self._locks: dict[str, int] = {}
        self._is_kept = False
        self.move = move
        self.is_resumed = False
        """Whether an earlier run of the same command has not finished."""

    def __enter__(self) -> Self:
        try:
            move_mark(self._data_dir, self.move.name).parent.mkdir(
                mode=0o700, parents=True, exist_ok=True
            )
            for name in self._names:
                self._begin(name)
            self.update()
        except OSError as error:
            self._release()
            text = f"cannot write {error.filename}: {error.strerror}; nothing was changed."
            raise TenantryError(text) from error
        except BaseException:
            self._release()
            raise
        return self

    def _begin(self, name: str) -> None:
        path = move_mark(self._data_dir, name)
        fd = self._locks[name] = _lock(path, name)
        if not (content := os.pread(fd, 1 << 16, 0)):
            return
        try:
            found = Move(**json.loads(content))
        except (TypeError, ValueError) as error:
            raise TenantryError(f"{path} is damaged; remove it.") from error
        if not found.is_same(self.move):
            self._is_kept = True
            text = f"an earlier command has not finished; first run it again: {found.command}"
            raise TenantryError(f"tenant {name!r}: {text}")
        self.move = replace(found, capsule=self.move.capsule, options=self.move.options)
        self.is_resumed = self._is_kept = True

    def update(self, **changes: object) -> None:
        """Change fields of the move, on disk and in `move`."""
        self.move = replace(self.move, **changes)  # type: ignore[arg-type]
        for name in self._names:
            self._write(name, json.dumps(asdict(self.move)))
        announce_change(self._data_dir, self.move.name)

    def _write(self, name: str, text: str) -> None:
        path = move_mark(self._data_dir, name)
        unfinished = path.with_name(f".{name}.new")
        unfinished.unlink(missing_ok=True)
        fd = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        # The new file is locked before it replaces the old file, so the tenant keeps answering 503.
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, text.encode())
        os.fsync(fd)
        unfinished.replace(path)
        os.close(self._locks[name])
        self._locks[name] = fd

    def keep(self) -> None:
        """Keep the journal if the block fails after this call."""
        self._is_kept = True

    def discard(self) -> None:
        """Remove the journal at the end of the block, even if the block fails."""
        self._is_kept = False

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._is_kept = False
        self._release()

    def _release(self) -> None:
        for name, fd in self._locks.items():
            if not self._is_kept:
                with suppress(OSError):
                    move_mark(self._data_dir, name).unlink(missing_ok=True)
            os.close(fd)
        self._locks.clear()
        announce_change(self._data_dir, self.move.name)


def unfinished_moves(data_dir: Path) -> dict[str, Move]:
    """Return the moves whose commands were killed, by the names of their tenants.

    A move that a command continues now is not part of the result.
    """
    found = {}
    for path in sorted(move_mark(data_dir, "_").parent.glob("[!.]*")):
        with suppress(OSError, TypeError, ValueError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            found[path.name] = Move(**json.loads(file.read()))
    return found


def _lock(path: Path, name: str) -> int:
    """Open and lock the journal file of a tenant, and return its file descriptor."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                text = f"another command is moving tenant {name!r}; wait for it."
                raise TenantryError(text) from None
            time.sleep(LOCK_POLL_S)
        os.close(fd)
