"""A tenant's folder, for capsules: a copy that fits the rows of a snapshot, and laying one out.

Knows files and locks only: no database, no capsule's form.
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
"""How long all folders together may take to be locked before they are let go for a moment."""

LOCK_POLL_S = 0.001
"""How often a lock is asked for: a writer holds it for one rename, so it is soon free again."""

ATTEMPTS = 20

_PAUSE_S = 0.05
_SPARE_FILES = 64

RESTORING = ".restoring"
"""A file in a tenant's folder that is not whole yet."""

_OWN = (".quota", RESTORING, "operator_state.json", "levers.json", "parked.lock")
"""What the host keeps in a tenant's folder, for itself."""

_INCOMING = PurePosixPath("images/incoming")
"""What is being uploaded and not kept yet."""


def is_of_database(path: PurePosixPath, database: str) -> bool:
    """Whether a file is a SQLite file, or one that is kept beside it.

    Args:
        path: below the tenant's folder.
        database: the same of the SQLite file, or "".
    """
    ends = ("", "-wal", "-shm", "-journal", ".migrating", ".made")
    return bool(database) and str(path) in {database + end for end in ends}


def is_left_out(path: PurePosixPath) -> bool:
    """Whether a file of a tenant's folder, given by its path there, belongs in no capsule."""
    text = str(path)
    is_operator_state = text.startswith(".operator_state.") and text.endswith(".new")
    is_own = is_operator_state or text in _OWN or text.startswith(".quota-")
    return is_own or path.is_relative_to(_INCOMING)


class FolderSnapshot:
    """A tenant's folder as it was at one moment, in hard links.

    Why each row of a snapshot has its file: an endpoint adds a file before its row and removes it
    after its row, both while it holds the lock of the folder that the file is in (`flock`, as
    `images` does). `freeze` holds the locks of all such folders while the snapshot is begun and
    the names are read. So of each file that is there then, the row is in the snapshot or has never
    been, and of each row the file is there; a later removal takes away a name, and the link keeps
    the bytes. A folder is made under the lock of the one above it, which is held first; where one
    came all the same, it was not locked, and it is all done once more. Most
    links are made before, without any lock, so that uploads wait for a look at the names only.

    Args:
        folder: the tenant's.
        copy: an empty folder, on the same disk if it can be: files are copied otherwise.
        database: the SQLite file's path below `folder`, or "".
        default: what it would be if the tenant named no database. Where it is another one, it may
            be left from before: a restored tenant could take its rows for its own.
    """

    def __init__(self, folder: Path, copy: Path, database: str, default: str = "") -> None:
        self._folder = folder
        self._copy = copy
        self._database = database
        self._default = default
        self._linked: dict[str, tuple[int, int, int]] = {}
        self.left_out: list[str] = []
        """What is neither a file nor a folder, and what is of a database that is not used."""

    def bring_up(self) -> None:
        """Make the copy what the folder is now."""
        found = dict(self._walk())
        for path in self._linked.keys() - found.keys():
            (self._copy / path).unlink()
            del self._linked[path]
        for path, facts in found.items():
            if self._linked.get(path) != facts and self._link(path):
                self._linked[path] = facts

    def freeze(self, begin: Callable[[], None]) -> None:
        """Call `begin`, which begins a snapshot (anew if called again), and fit the copy to it.

        Raises:
            TenantryError: the folders are never all free, or new ones come all the time.
        """
        self.bring_up()
        for _ in range(ATTEMPTS):
            try:
                with ExitStack() as locks:
                    _lock_all(_subfolders(self._folder), locks)
                    folders = list(self._folders())
                    _lock_all([one for one in folders if one.parent != self._folder], locks)
                    begin()
                    self.bring_up()
                    if list(self._folders()) == folders:
                        return
            except BlockingIOError:
                pass
            time.sleep(_PAUSE_S)  # whoever waited has a turn
        text = f"{self._folder}: its folders are locked, or change, all the time; try again later."
        raise TenantryError(text)

    def files(self) -> list[tuple[str, Path]]:
        """Return the files of the copy, by their paths below the folder, sorted."""
        return [(path, self._copy / path) for path in sorted(self._linked)]

    def _folders(self) -> Iterator[Path]:
        """Yield what endpoints may lock: their own folders, and the folders in those."""
        for first in _subfolders(self._folder):
            yield first
            yield from _subfolders(first)

    def _walk(self) -> Iterator[tuple[str, tuple[int, int, int]]]:
        self.left_out.clear()
        folders = [""]
        while folders:
            below = folders.pop()
            with suppress(FileNotFoundError), os.scandir(self._folder / below) as entries:
                for entry in entries:
                    path = f"{below}{entry.name}"
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
        if is_of_database(path, self._database) or is_left_out(path):
            return True
        is_old = is_of_database(path, self._default)
        self.left_out += [str(path)] * is_old
        return is_old

    def _link(self, path: str) -> bool:
        """Link or copy one file; False if it is gone."""
        source, target = self._folder / path, self._copy / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError:  # another disk, or no right to link what somebody else owns
            try:
                shutil.copy2(source, target, follow_symlinks=False)
            except FileNotFoundError:
                return False
        return True


def _lock_all(folders: Iterable[Path], locks: ExitStack) -> None:
    """Lock folders, shared: two copies do not mind one another.

    Raises:
        BlockingIOError: one is not free in time.
    """
    folders = list(folders)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(folders) + len(os.listdir("/proc/self/fd")) + _SPARE_FILES  # noqa: PTH208
    if needed > soft:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    deadline = time.monotonic() + LOCK_WAIT_S
    for folder in folders:
        try:
            opened = open_folder(folder)
        except FileNotFoundError:
            continue
        locks.callback(os.close, opened)
        while True:
            try:
                fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOCK_POLL_S)


def _subfolders(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        names = sorted(one.name for one in entries if one.is_dir(follow_symlinks=False))
        return [folder / name for name in names]
    return []


def checked_path(text: str) -> PurePosixPath:
    """Return a file's path out of a capsule, which cannot leave the folder it is laid out in.

    Raises:
        ValueError: it could, or no capsule of ours holds such a file.
    """
    path = PurePosixPath(text)
    if str(path) != text or path.is_absolute() or {"..", "."} & {*path.parts} or "\0" in text:
        raise ValueError(f"the path {text!r} is none of a tenant's file")
    if not path.parts or is_left_out(path):
        raise ValueError(f"the file {text!r} belongs in no capsule")
    return path


def lay_out(
    folder: Path, path: PurePosixPath, chunks: Iterable[bytes], mode: int, mtime: int
) -> None:
    """Write one file of a capsule below `folder`; what is there is never overwritten.

    Raises:
        OSError: it is there, has an impossible name, or the disk is full.
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
