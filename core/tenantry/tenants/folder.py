"""The tenants folder as it changes: which files have new content, and which are gone.

Decided by content, not by time stamps; a time stamp only tells which files to read again. Content
counts once it has settled: 48 % of all truncations of a tenant file still compile.
"""

import contextlib
import errno
import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from tenantry.errors import TenantFileError
from tenantry.tenants.loader import read_tenant_file
from tenantry.tenants.round_robin import RoundRobin
from tenantry.tenants.writers import is_being_written

SETTLE_S = 0.1
"""A file is read twice, so far apart, before its content counts; editors and `cp` write faster."""

WRITER_PATIENCE_S = 5.0
"""How long content that does not change any more is kept back while somebody has the file open for
writing: whoever pauses longer, or never closes it, has it served as it is."""

REMOVAL_S = 0.5
"""How long a file must be gone: a tool that deletes and writes anew takes less."""

RECENT_S = 2.0
"""A file is read at every look for so long after its time stamp was seen to change: two changes can
have one time stamp, of which file systems keep 4 ms (ext4) to 2 s (FAT)."""

_IS_ANOTHER = (
    "it is empty and another folder than before (a volume that is not mounted?); all tenants stay; "
    "to end them, empty the folder itself, or restart"
)


CHECK_S = 0.5
"""Between two whole looks while a second change of the folder could hide behind its time stamp."""


@dataclass(frozen=True, slots=True)
class FileContent:
    """Settled content of one tenant file, or why it cannot be read."""

    path: Path
    digest: str = ""
    """SHA-256 of the source, or of the error; empty: not read yet, `read_content` does it."""
    source: bytes = b""
    error: TenantFileError | None = None


@dataclass
class FolderChanges:
    """What one look at the folder found, against the looks before."""

    changed: list[FileContent] = field(default_factory=list)
    appeared: list[str] = field(default_factory=list)
    """Names seen for the first time; their content may not have settled yet."""
    removed: list[str] = field(default_factory=list)
    is_settled: bool = True
    """False: look again after `SETTLE_S`."""


@dataclass(slots=True)
class _File:
    """What is remembered of one file: some 10,000 of these may be alive."""

    signature: int
    seen_s: float
    """When the signature was seen first, by our clock: a file server's may be wrong."""
    is_quiet: bool = False
    """It was read once more when no second change could hide behind its time stamp."""
    digest: str = ""
    """Of the content that was told last."""
    candidate: str = ""
    """Of content that is not settled yet, and since when."""
    since_s: float = 0.0
    missing_since_s: float | None = None


class TenantsFolder:
    """Remembers what it told of a folder, and tells what is new. For one thread.

    Args:
        path: the folder; it may vanish and come back.
        only: names to follow, as if no other file were there; empty for all.
        clock: seconds, for settling.
        wall_clock: seconds since the epoch, as the file system has it.
    """

    def __init__(
        self,
        path: Path,
        only: Collection[str] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._only = frozenset(only)
        self._clock = clock
        self._wall_clock = wall_clock
        self._files: dict[str, _File] = {}
        self._restless: set[str] = set()  # names to read at every look
        self._gone: set[str] = set()  # names that were there, until they are told as removed
        self._round_robin = RoundRobin()
        self._has_links = False
        self._signature = 0  # of the folder itself, and when it was seen first
        self._seen_s = -math.inf
        self._checked_s = -math.inf
        self._identity: tuple[int, int] | None = None  # of the folder that had files last
        self._is_first_look = True

    def __len__(self) -> int:
        """Return how many files were there."""
        return len(self._files)

    @property
    def has_links(self) -> bool:
        """Whether some file has another name too: of a change there the folder tells nothing."""
        return self._has_links

    def is_missing(self, name: str) -> bool:
        """Whether a file that was there is not, and may yet come back or be told as removed."""
        return name in self._gone

    def look(self, share: float = 1.0) -> FolderChanges:
        """Compare the folder with what was told before.

        Args:
            share: of the files to look at, each in its turn; 1 is all. All, too, when the folder
                has changed (a file came, went or was replaced); always those not settled yet.

        Raises:
            OSError: the folder cannot be read, or an empty one is in its place: a volume that is
                not mounted. Nothing is taken for removed then.
        """
        found = FolderChanges()
        if self._has_changed() or share >= 1:
            names = self._names()
            self._gone = self._files.keys() - names
        else:
            names = self._restless.union(self._round_robin.take(self._files, share)) - self._gone
        for name in names:
            with contextlib.suppress(OSError):  # its path cannot be told now: at the next look
                self._look_at(name, found)
        for name in list(self._gone):
            self._miss(name, found)
        self._is_first_look = False
        return found

    def _has_changed(self) -> bool:
        """Whether files may have come, gone or been replaced since the last whole look.

        Raises:
            OSError: the folder is not there.
        """
        info, now = self.path.stat(), self._clock()
        signature = _facts(info)
        if signature != self._signature:
            self._signature, self._seen_s = signature, now
        elif self._checked_s - self._seen_s >= RECENT_S or now - self._checked_s < CHECK_S:
            return False
        self._checked_s = now
        return True

    def _names(self) -> set[str]:
        info = self.path.stat()  # first: a folder that is replaced now is another one next time
        with os.scandir(self.path) as entries:
            names, links = set(), False
            for entry in entries:
                name = entry.name
                if _is_tenant_file(name) and (not self._only or name[:-3] in self._only):
                    names.add(name[:-3])
                    links = links or entry.is_symlink()
        self._has_links = links
        if names:
            self._identity = info.st_dev, info.st_ino
        elif self._files and self._identity not in (None, (info.st_dev, info.st_ino)):
            self._signature = 0  # the next look is a whole one
            raise OSError(errno.ENODEV, _IS_ANOTHER)
        return names

    def _look_at(self, name: str, found: FolderChanges) -> None:
        signature, changed_at = self._signature_of(name)
        file, now = self._files.get(name), self._clock()
        if file is not None:
            file.missing_since_s = None
            if file.signature == signature and file.is_quiet:
                return
        if file is None:
            file = self._files[name] = _File(signature, now)
            found.appeared.append(name)
            # At start most files are old. 10,000 of them are read when each is judged, not here:
            # that would keep every request waiting for seconds.
            is_old = changed_at > 0 and self._wall_clock() - changed_at > RECENT_S
            if self._is_first_look and is_old:
                file.is_quiet = True
                found.changed.append(FileContent(self.path / f"{name}.py"))
                return
        self._read(name, file, signature, found)

    def _read(self, name: str, file: _File, signature: int, found: FolderChanges) -> None:
        content, now = read_content(self.path / f"{name}.py"), self._clock()
        if file.signature != signature:
            file.signature, file.seen_s, file.is_quiet = signature, now, False
        if content.digest == file.digest:
            file.candidate = ""
            # What cannot be read may become readable without a change of its own: its folder.
            file.is_quiet = content.error is None and now - file.seen_s >= RECENT_S
        elif file.candidate != content.digest:
            file.candidate, file.since_s, file.is_quiet = content.digest, now, False
            found.is_settled = False
        elif now - file.since_s < SETTLE_S or (
            now - file.since_s < WRITER_PATIENCE_S and is_being_written(f"{self.path}/{name}.py")
        ):
            found.is_settled = False
        else:
            self._tell(file, content, found)
        (self._restless.discard if file.is_quiet else self._restless.add)(name)

    def _signature_of(self, name: str) -> tuple[int, float]:
        """Return what changes when the content does, and when it did (seconds since the epoch)."""
        try:
            # No `Path`: one for each of 10,000 files costs 20 ms a look.
            info = os.stat(f"{self.path}/{name}.py")  # noqa: PTH116
        except OSError:
            return 0, 0.0
        self._has_links = self._has_links or info.st_nlink > 1
        return _facts(info), info.st_ctime  # a copying tool may set the other time

    def note(self, name: str, digest: str, *, is_readable: bool) -> None:
        """Remember the digest of a file that was told unread."""
        file = self._files.get(name)
        if file is not None and not file.digest:
            # Not quiet: a look has found it changed since, so this may be of its old content.
            file.digest, file.is_quiet = digest, file.is_quiet and is_readable
            if not is_readable:
                self._restless.add(name)

    def _tell(self, file: _File, content: FileContent, found: FolderChanges) -> None:
        file.digest, file.candidate = content.digest, ""
        found.changed.append(content)

    def _miss(self, name: str, found: FolderChanges) -> None:
        file, now = self._files[name], self._clock()
        if file.missing_since_s is None:
            file.missing_since_s = now
        if now - file.missing_since_s < REMOVAL_S:
            found.is_settled = False
            return
        del self._files[name]
        self._gone.discard(name)
        self._restless.discard(name)
        found.removed.append(name)


def _facts(info: os.stat_result) -> int:
    """Return what changes when the content does."""
    facts = (info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino, info.st_mode)
    return hash(facts)


def list_tenant_files(folder: Path) -> list[Path]:
    """Return the paths of the tenant files in `folder`, by name.

    Raises:
        OSError: the folder is not there or cannot be read.
    """
    with os.scandir(folder) as entries:
        names = [entry.name[:-3] for entry in entries if _is_tenant_file(entry.name)]
    return [folder / f"{name}.py" for name in sorted(names)]


def _is_tenant_file(name: str) -> bool:
    return name.endswith(".py") and name[0] not in "._"


def read_content(path: Path) -> FileContent:
    """Return a tenant file's content as it is now, settled or not, or why it cannot be read."""
    try:
        source = read_tenant_file(path)
    except TenantFileError as error:
        return FileContent(path, _digest(str(error).encode()), error=error)
    return FileContent(path, _digest(source), source)


def _digest(source: bytes) -> str:
    # One string for all who keep it: the folder, the mount and the tenant.
    return sys.intern(hashlib.sha256(source).hexdigest())
