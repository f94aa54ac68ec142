"""A tenant's folder: a copy of one moment for a backup, and writing files for a restore.

Knows files and locks only: no database, no archive.
"""

import fcntl
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath

from tenantry.capsules.locks import open_folder
from tenantry.errors import TenantryError

LOCK_WAIT_S = 5.0
"""How long locking all folders may take before the snapshot releases them and starts again."""

LOCK_POLL_S = 0.001
"""Interval of the attempts to get a lock; a writer holds it for the length of one rename."""

ATTEMPTS = 20

_PAUSE_S = 0.05

RESTORING = ".restoring"
"""A file in a tenant's folder that a restore has not finished."""

_HOST_FILES = (".quota", RESTORING, "operator_state.json", "levers.json", "parked.lock")
"""Files that the host keeps in a tenant's folder."""

_HOST_PREFIXES = (".quota-", ".operator_state.", ".levers.")

_INCOMING = PurePosixPath("images/incoming")
"""Uploads that have not finished."""

_DATABASE_SUFFIXES = ("", "-wal", "-shm", "-journal", ".migrating", ".made")


def belongs_to_database(path: PurePosixPath, database: str) -> bool:
    """Whether a file is a SQLite database file, or one of the files beside it.

    Args:
        path: a path below the tenant's folder.
        database: the path of the SQLite file below that folder; "" if it is elsewhere.
    """
    return bool(database) and str(path) in {database + suffix for suffix in _DATABASE_SUFFIXES}


def is_left_out(path: PurePosixPath) -> bool:
    """Whether a file, by its path below the tenant's folder, is never part of a capsule."""
    text = str(path)
    is_host_file = text in _HOST_FILES or text.startswith(_HOST_PREFIXES)
    return is_host_file or path.is_relative_to(_INCOMING)


class FolderSnapshot:
    """A tenant's folder as it was at one moment, as hard links in another folder.

    It matches the database snapshot: each row that refers to a file has that file. An endpoint
    adds a file before its row, and removes it after its row, in both cases while it holds the
    `flock` of the file's folder, as `images` does. `freeze` holds the locks of all these folders
    while the database snapshot begins and the folder is listed. So every file that exists then
    either has its row in the snapshot or never had one. A removal after that takes away a name;
    the hard link keeps the bytes. An endpoint creates a folder under the lock of the parent folder;
    if a new folder appears nevertheless, it was not locked, and `freeze` starts again. Most links
    are made before any lock is taken, so uploads wait only while the folder is listed.

    Args:
        folder: the tenant's folder.
        copy: an empty folder. On another disk, files are copied instead of linked.
        database: the path of the SQLite file below `folder`, or "".
        default_database: the path that the SQLite file has by default. If the tenant uses another
            database, a file of this name is left out, because a restored tenant would open it.
    """

    def __init__(
        self, folder: Path, copy: Path, *, database: str = "", default_database: str = ""
    ) -> None:
        self._folder = folder
        self._copy = copy
        self._database = database
        self._default_database = default_database
        self._linked: dict[str, tuple[int, int, int]] = {}
        self.left_out: list[str] = []
        """Paths that are neither files nor folders, or belong to an unused default database."""

    def freeze(self, begin: Callable[[], None]) -> None:
        """Update the copy to the moment at which `begin` starts the database snapshot.

        `begin` may be called several times; the last call counts.

        Raises:
            TenantryError: a folder stayed locked, or new folders kept appearing.
        """
        _raise_descriptor_limit()
        self._update()
        for _ in range(ATTEMPTS):
            try:
                with ExitStack() as locks:
                    _lock_all(_subfolders(self._folder), locks)
                    folders = list(self._lockable_folders())
                    _lock_all([path for path in folders if path.parent != self._folder], locks)
                    begin()
                    self._update()
                    if list(self._lockable_folders()) == folders:
                        return
            except BlockingIOError:
                pass  # a folder was not free in time
            time.sleep(_PAUSE_S)  # lets waiting writers in
        text = f"{self._folder}: its folders are locked or change all the time; try again later."
        raise TenantryError(text)

    def files(self) -> list[tuple[str, Path]]:
        """Return each file's path below the tenant's folder, and its copy, sorted."""
        return [(path, self._copy / path) for path in sorted(self._linked)]

    def _update(self) -> None:
        """Make the copy equal to the folder."""
        found = dict(self._walk())
        for path in self._linked.keys() - found.keys():
            (self._copy / path).unlink()
            del self._linked[path]
        for path, identity in found.items():
            if self._linked.get(path) != identity and self._link(path):
                self._linked[path] = identity

    def _lockable_folders(self) -> Iterator[Path]:
        """Yield the folders that endpoints lock: their own, and the folders in those."""
        for folder in _subfolders(self._folder):
            yield folder
            yield from _subfolders(folder)

    def _walk(self) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """Yield each file's path, and what changes with its content."""
        self.left_out.clear()
        folders = [""]
        while folders:
            parent = folders.pop()
            with suppress(FileNotFoundError), os.scandir(self._folder / parent) as entries:
                for entry in entries:
                    path = f"{parent}{entry.name}"
                    if self._is_left_out(PurePosixPath(path)):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{path}/")
                    elif entry.is_file(follow_symlinks=False):
                        with suppress(FileNotFoundError):
                            info = entry.stat(follow_symlinks=False)
                            yield path, (info.st_ino, info.st_size, info.st_mtime_ns)
                    else:
                        self.left_out.append(path)

    def _is_left_out(self, path: PurePosixPath) -> bool:
        if belongs_to_database(path, self._database) or is_left_out(path):
            return True
        if belongs_to_database(path, self._default_database):
            self.left_out.append(str(path))
            return True
        return False

    def _link(self, path: str) -> bool:
        """Link or copy one file; return False if it no longer exists."""
        source, target = self._folder / path, self._copy / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            try:
                os.link(source, target, follow_symlinks=False)
            except FileNotFoundError:
                raise
            except OSError:  # another disk, or another user's file, which may not be linked
                shutil.copy2(source, target, follow_symlinks=False)
            return True
        return False


def _raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as it may have: each locked folder takes one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _lock_all(folders: Iterable[Path], locks: ExitStack) -> None:
    """Take shared locks on folders, so that two backups can run at once.

    Raises:
        BlockingIOError: a folder was not free in time.
    """
    deadline = time.monotonic() + LOCK_WAIT_S
    for folder in folders:
        try:
            fd = open_folder(folder)
        except FileNotFoundError:
            continue
        locks.callback(os.close, fd)
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOCK_POLL_S)


def _subfolders(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        return sorted(
            folder / entry.name for entry in entries if entry.is_dir(follow_symlinks=False)
        )
    return []


def checked_path(text: str) -> PurePosixPath:
    """Return the path of a file in a capsule, which cannot leave the tenant's folder.

    Raises:
        ValueError: it could leave the folder, or such a file is never part of a capsule.
    """
    path = PurePosixPath(text)
    if str(path) != text or path.is_absolute() or {"..", "."} & {*path.parts} or "\0" in text:
        raise ValueError(f"{text!r} is not the path of a file in a tenant's folder")
    if is_left_out(path):
        raise ValueError(f"the file {text!r} is never part of a capsule")
    return path


def write_file(
    folder: Path, path: PurePosixPath, chunks: Iterable[bytes], *, mode: int, mtime: int
) -> None:
    """Write one file of a capsule below `folder`; never overwrite one.

    Raises:
        OSError: the file exists, its name is impossible, or the disk is full.
    """
    target = folder / path
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(target, flags, 0o600), "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fchmod(file.fileno(), (mode & 0o755) | 0o600)
        os.utime(file.fileno(), (mtime, mtime))
