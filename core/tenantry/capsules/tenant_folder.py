"""Copies a tenant's folder as of one moment for a backup, and writes files for a restore.

The module `tenant_folder` handles files and locks, but no database and no archive.
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
"""Seconds that a snapshot waits for the locks of all folders before the next attempt."""

LOCK_POLL_S = 0.001
"""Seconds between two attempts to get a folder's lock.

A writer holds the lock only during one rename.
"""

ATTEMPTS = 20

_PAUSE_S = 0.05

RESTORING = ".restoring"
"""Name of the file that marks a tenant's folder during a restore."""

_HOST_FILES = (".quota", RESTORING, "operator_state.json", "levers.json", "parked.lock")
"""Names of the files that the host keeps in a tenant's folder."""

_HOST_PREFIXES = (".quota-", ".operator_state.", ".levers.")

_INCOMING = PurePosixPath("images/incoming")
"""Folder with the unfinished uploads of the endpoint `images`."""

_DATABASE_SUFFIXES = ("", "-wal", "-shm", "-journal", ".migrating", ".made")


def belongs_to_database(path: PurePosixPath, database: str) -> bool:
    """Whether a path is a SQLite database file or a companion such as the `-wal` file.

    Args:
        path: a path relative to the tenant's folder.
        database: the path of the SQLite file relative to the tenant's folder; "" for a database
            outside the tenant's folder.
    """
    return bool(database) and str(path) in {database + suffix for suffix in _DATABASE_SUFFIXES}


def is_left_out(path: PurePosixPath) -> bool:
    """Whether capsules never contain the file with the given path in the tenant's folder."""
    text = str(path)
    is_host_file = text in _HOST_FILES or text.startswith(_HOST_PREFIXES)
    return is_host_file or path.is_relative_to(_INCOMING)


class FolderSnapshot:
    """A copy of a tenant's folder as of one moment, made of hard links in another folder.

    The folder snapshot matches the database snapshot: if a row in the database snapshot refers to a
    file, the folder snapshot has the file. An endpoint adds a file before the file's row and
    removes a file after the file's row. The endpoint holds the `flock` of the file's folder while
    the endpoint adds or removes the file and the row. `freeze` holds the locks of all folders while
    `freeze` begins the database snapshot and lists the files. If an endpoint later removes a file,
    the hard link keeps the content.

    An endpoint creates a folder under the lock of the parent folder. If a new folder appears
    without a lock, `freeze` starts again. `freeze` creates most links before `freeze` takes the
    locks, so uploads wait only while `freeze` lists the files.

    Args:
        folder: the tenant's folder.
        copy: an empty folder for the hard links. If `copy` is on another disk, the snapshot copies
            the files.
        database: the path of the SQLite file relative to `folder`, or "".
        default_database: the default path of the SQLite file relative to `folder`. If the tenant
            uses another database, the snapshot omits the file `default_database`, because a
            restored tenant would open the file.
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
        """Omitted paths: special files such as sockets, and files of an unused default database."""

    def freeze(self, begin: Callable[[], None]) -> None:
        """Update the copy to the moment at which `begin` starts the database snapshot.

        `freeze` may call `begin` several times. The copy matches the last call of `begin`.

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
                pass  # a folder stayed locked for `LOCK_WAIT_S`
            time.sleep(_PAUSE_S)  # the pause lets waiting writers take the locks
        text = f"{self._folder}: its folders are locked or change all the time; try again later."
        raise TenantryError(text)

    def files(self) -> list[tuple[str, Path]]:
        """Return sorted pairs: a path relative to the tenant's folder, and the path of the copy."""
        return [(path, self._copy / path) for path in sorted(self._linked)]

    def _update(self) -> None:
        """Make the copy equal to the tenant's folder."""
        found = dict(self._walk())
        for path in self._linked.keys() - found.keys():
            (self._copy / path).unlink()
            del self._linked[path]
        for path, identity in found.items():
            if self._linked.get(path) != identity and self._link(path):
                self._linked[path] = identity

    def _lockable_folders(self) -> Iterator[Path]:
        """Yield the folders that endpoints lock: the two upper levels of the tenant's folder."""
        for folder in _subfolders(self._folder):
            yield folder
            yield from _subfolders(folder)

    def _walk(self) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """Yield the path, and the inode, size and modification time, of each file in the folder."""
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
        """Link or copy one file; return False if the file no longer exists."""
        source, target = self._folder / path, self._copy / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            try:
                os.link(source, target, follow_symlinks=False)
            except FileNotFoundError:
                raise
            except OSError:  # the file is on another disk or belongs to another user
                shutil.copy2(source, target, follow_symlinks=False)
            return True
        return False


def _raise_descriptor_limit() -> None:
    """Raise the limit of file descriptors, because each locked folder takes a descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _lock_all(folders: Iterable[Path], locks: ExitStack) -> None:
    """Take shared locks on folders. Two backups can hold the same shared locks.

    Raises:
        BlockingIOError: a folder stayed locked for `LOCK_WAIT_S` seconds.
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
    """Return the path of a file in a capsule after checking that the path is safe.

    Raises:
        ValueError: the path could leave the tenant's folder, or is never part of a capsule.
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
    """Write one file of a capsule below `folder`, without overwriting an existing file.

    Raises:
        OSError: the file exists, the file's name is invalid, or the disk is full.
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
