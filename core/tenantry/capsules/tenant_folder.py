"""Copies a tenant's folder for a backup, and writes files for a restore."""

import fcntl
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath

from tenantry.capsules.locks import open_folder
from tenantry.capsules.sqlite_copy import companion_of, copy_database, is_sqlite_file
from tenantry.errors import TenantryError

LOCK_WAIT_S = 5.0
"""Maximum seconds that one attempt to lock all folders takes."""

LOCK_POLL_S = 0.001
"""Seconds between two attempts to lock a folder.

The pause is short, because a writer holds the lock only while it renames a file.
"""

ATTEMPTS = 20

_PAUSE_S = 0.05

RESTORING = ".restoring"
"""Name of a file that marks the folder of a tenant that is being restored."""

_HOST_FILES = (".quota", RESTORING, "operator_state.json", "levers.json", "parked.lock")
"""Names of the host's own files in a tenant's folder."""

_HOST_PREFIXES = (".quota-", ".operator_state.", ".levers.")

_INCOMING = PurePosixPath("images/incoming")
"""Folder in which the endpoint `images` keeps unfinished uploads."""

_DATABASE_SUFFIXES = ("", "-wal", "-shm", "-journal", ".migrating", ".made")


def belongs_to_database(path: PurePosixPath, database: str) -> bool:
    """Whether a path is a SQLite database, or one of its companion files, such as `-wal`.

    Args:
        path: a path relative to the tenant's folder.
        database: the path of the SQLite file relative to the tenant's folder, or "" for a database
            outside the folder.
    """
    return bool(database) and str(path) in {database + suffix for suffix in _DATABASE_SUFFIXES}


def is_program(path: PurePosixPath) -> bool:
    """Whether a file is a template or a static file, which the app runs or publishes.

    A restored template would replace the template of an endpoint, and Jinja would run its code.
    """
    return path.parts[0] in {"templates", "static"}


def is_left_out(path: PurePosixPath) -> bool:
    """Whether capsules omit a file, given its path in the tenant's folder."""
    text = str(path)
    is_host_file = text in _HOST_FILES or text.startswith(_HOST_PREFIXES)
    return is_host_file or path.is_relative_to(_INCOMING)


class FolderSnapshot:
    """A copy of a tenant's folder as of one moment. The copy consists of hard links.

    The copy matches the snapshot of the database: if a row in the snapshot refers to a file, the
    copy contains the file. To make this possible, endpoints add a file before its row, and remove a
    file after its row. While an endpoint adds or removes a file and its row, the endpoint holds the
    `flock` of the file's folder. The method `freeze` locks all folders, begins the database
    snapshot, and lists the files. If an endpoint removes a file later, the hard link keeps the
    file's content.

    To create a folder, an endpoint locks the parent folder. If a new folder appears that is not
    locked, `freeze` starts again. Most links are created before the folders are locked, so uploads
    wait only while `freeze` lists the files.

    Args:
        folder: the tenant's folder.
        copy: an empty folder for the hard links. If `copy` is on another disk, the files are
            copied.
        database: the path of the SQLite file relative to `folder`, or "".
        default_database: the default path of the SQLite file relative to `folder`. If the tenant
            uses another database, the snapshot omits the default file, because a restored tenant
            would use that file as its database.
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
        """Paths of omitted files: special files such as sockets, and an unused default database."""

    def freeze(self, begin: Callable[[], None]) -> None:
        """Make the copy match the database snapshot that `begin` begins.

        If a folder changes in the meantime, `begin` is called again, and the copy matches the last
        call.

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
                    is_stable = list(self._lockable_folders()) == folders
                if is_stable:
                    self._copy_databases()
                    return
            except BlockingIOError:
                pass  # the loop tries again after a pause
            time.sleep(_PAUSE_S)  # gives waiting writers time to take the locks
        text = f"{self._folder}: its folders are locked or change all the time; try again later."
        raise TenantryError(text)

    def _copy_databases(self) -> None:
        """Replace the links to the app's SQLite databases by copies that SQLite's backup API makes.

        The copies contain the state of the databases shortly after the snapshot.
        """
        companions = [path for path in self._linked if companion_of(self._folder / path)]
        for path in companions:
            (self._copy / path).unlink()
            del self._linked[path]
        for path in [path for path in self._linked if is_sqlite_file(self._folder / path)]:
            (self._copy / path).unlink()
            copy_database(self._folder / path, self._copy / path)

    def files(self) -> list[tuple[str, Path]]:
        """Return the relative path of each file and the path of its copy, sorted by path."""
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
        """Yield the folders that endpoints may lock: the upper two levels of a tenant's folder."""
        for folder in _subfolders(self._folder):
            yield folder
            yield from _subfolders(folder)

    def _walk(self) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """Yield the path of each file, with its inode, size and modification time."""
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
        """Link or copy one file, and return whether the file still exists."""
        source, target = self._folder / path, self._copy / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            try:
                os.link(source, target, follow_symlinks=False)
            except FileNotFoundError:
                raise
            except OSError:  # a hard link is impossible, for example on another disk
                shutil.copy2(source, target, follow_symlinks=False)
            return True
        return False


def _raise_descriptor_limit() -> None:
    """Raise the limit of open files, because each locked folder needs a file descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _lock_all(folders: Iterable[Path], locks: ExitStack) -> None:
    """Take shared locks on folders, so that several backups can run at the same time.

    Raises:
        BlockingIOError: a folder was still locked after `LOCK_WAIT_S` seconds.
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
    """Check that the path of a file in a capsule is safe, and return the path.

    Raises:
        ValueError: the path could be outside of the tenant's folder, or is never part of a capsule.
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
    """Write a file from a capsule below `folder`, without overwriting an existing file.

    Raises:
        OSError: the file exists, its name is invalid, or the disk is full.
    """
    target = folder / path
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(target, flags, 0o600), "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fchmod(file.fileno(), (mode & 0o700) | 0o600)
        os.utime(file.fileno(), (mtime, mtime))
