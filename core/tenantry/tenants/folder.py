"""Finds changes in the tenants folder: tenant files with new content, and removed tenant files.

A file counts as changed if its content has changed. Its time stamp only shows whether the host has
to read the file again. New content is reported once it is stable, because a file that is cut off
while it is being written often still compiles (48 % of all truncations of a tenant file do).
"""

import contextlib
import errno
import math
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from tenantry.tenants.file import (
    FileContent,
    is_open_for_writing,
    is_tenant_file_name,
    read_content,
)
from tenantry.tenants.round_robin import RoundRobin

SETTLE_S = 0.1
"""Seconds without a change after which the content of a file is stable. Editors and `cp` take less
time to write a file."""

WRITER_PATIENCE_S = 5.0
"""Maximum seconds that the host waits while a process has a file open for writing. The host then
uses the content of the file."""

REMOVAL_S = 0.5
"""Seconds after which a missing file is reported as removed. Tools that delete and rewrite a file
take less time."""

RECENT_S = 2.0
"""Seconds after a file's time stamp for which every scan reads the file. Two changes can have the
same time stamp, because time stamps have a resolution of 4 ms (ext4) to 2 s (FAT)."""

CHECK_S = 0.5
"""Seconds between two complete scans while a change of the folder's time stamp is recent."""

_IS_ANOTHER_FOLDER = (
    "the folder is empty and is not the same folder as before (a volume that is not mounted?). All "
    "tenants stay. To remove them, empty the original folder, or restart."
)


@dataclass
class FolderChanges:
    """The changes that one scan of the tenants folder has found."""

    changed: list[FileContent] = field(default_factory=list)
    appeared: list[str] = field(default_factory=list)
    """Names of new tenants, whose files may not be stable yet."""
    removed: list[str] = field(default_factory=list)
    is_settled: bool = True
    """Whether all content is stable. Otherwise, the caller scans again after `SETTLE_S`."""


@dataclass(slots=True)
class _File:
    """What earlier scans know about one tenant file."""

    signature: int
    signature_since_s: float
    """When a scan first saw the signature, by the host's clock. The clock of a file server can be
    wrong."""
    is_quiet: bool = False
    """Whether scans can skip the file, because its time stamp was no longer recent when it was
    read."""
    digest: str = ""
    """Digest of the content that was last reported."""
    candidate: str = ""
    """Digest of content that is not stable yet."""
    candidate_since_s: float = 0.0
    missing_since_s: float | None = None


class TenantsFolder:
    """Reports changes in the tenants folder since the last report. Not thread-safe.

    Args:
        path: the tenants folder, which may disappear and come back.
        only: names of the tenants to follow; empty means all.
        clock: returns monotonic seconds.
        wall_clock: returns seconds since the epoch, to compare with the time stamps of files.
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
        self._restless: set[str] = set()  # names of files to read at every scan
        self._gone: set[str] = set()  # names of missing files that are not reported as removed yet
        self._round_robin = RoundRobin()
        self._has_links = False
        self._signature = 0  # the signature of the tenants folder
        self._signature_since_s = -math.inf
        self._checked_s = -math.inf
        # Device and inode of the folder when it last contained files.
        self._identity: tuple[int, int] | None = None
        self._is_first_look = True

    def __len__(self) -> int:
        """Return the number of known tenant files."""
        return len(self._files)

    @property
    def has_links(self) -> bool:
        """Whether a tenant file is a link, which can change without any change in the folder."""
        return self._has_links

    def is_missing(self, name: str) -> bool:
        """Whether a file is missing but not reported as removed yet."""
        return name in self._gone

    def look(self, share: float = 1.0) -> FolderChanges:
        """Scan the tenants folder, and return the changes since the last report.

        Args:
            share: the part of the files to scan (0 to 1), by round robin. Every scan also covers
                the files whose content is not stable yet. If a file was added, removed or replaced,
                the scan covers all files.

        Raises:
            OSError: the folder cannot be read, or has been replaced by an empty folder, such as a
                mount point without its volume. After this error, no tenant counts as removed.
        """
        changes = FolderChanges()
        if self._has_changed() or share >= 1:
            names = self._names()
            self._gone = self._files.keys() - names
        else:
            names = self._restless.union(self._round_robin.take(self._files, share)) - self._gone
        for name in names:
            with contextlib.suppress(OSError):  # the next scan tries again
                self._look_at(name, changes)
        for name in list(self._gone):
            self._note_missing(name, changes)
        self._is_first_look = False
        return changes

    def note_digest(self, name: str, digest: str, *, is_readable: bool) -> None:
        """Record the digest of a file that was reported as new before it was read."""
        file = self._files.get(name)
        if file is not None and not file.digest:
            # If a scan has found a newer change, every scan keeps reading the file, because the
            # digest may be outdated.
            file.digest, file.is_quiet = digest, file.is_quiet and is_readable
            if not is_readable:
                self._restless.add(name)

    def _has_changed(self) -> bool:
        """Whether files may have been added, removed or replaced since the last complete scan."""
        info, now = self.path.stat(), self._clock()
        signature = _signature(info)
        if signature != self._signature:
            self._signature, self._signature_since_s = signature, now
        else:
            is_recent = self._checked_s - self._signature_since_s < RECENT_S
            if not is_recent or now - self._checked_s < CHECK_S:
                return False
        self._checked_s = now
        return True

    def _names(self) -> set[str]:
        # The signature is read first, so that the next scan notices if the folder is replaced
        # during this scan.
        info = self.path.stat()
        with os.scandir(self.path) as entries:
            names, links = set(), False
            for entry in entries:
                name = entry.name
                if is_tenant_file_name(name) and (not self._only or name[:-3] in self._only):
                    names.add(name[:-3])
                    links = links or entry.is_symlink()
        self._has_links = links
        if names:
            self._identity = info.st_dev, info.st_ino
        elif self._files and self._identity not in (None, (info.st_dev, info.st_ino)):
            self._signature = 0  # makes the next scan read the whole folder
            raise OSError(errno.ENODEV, _IS_ANOTHER_FOLDER)
        return names

    def _look_at(self, name: str, changes: FolderChanges) -> None:
        signature, changed_at = self._stat(name)
        file = self._files.get(name)
        if file is not None:
            file.missing_since_s = None
            if file.signature == signature and file.is_quiet:
                return
        else:
            file = self._files[name] = _File(signature, self._clock())
            changes.appeared.append(name)
            # At start, the scan does not read old files, because reading 10,000 files would delay
            # every request for seconds. An old file is read when it is validated.
            is_old = changed_at > 0 and self._wall_clock() - changed_at > RECENT_S
            if self._is_first_look and is_old:
                file.is_quiet = True
                changes.changed.append(FileContent(self.path / f"{name}.py"))
                return
        self._read(name, file, signature, changes)

    def _read(self, name: str, file: _File, signature: int, changes: FolderChanges) -> None:
        content, now = read_content(self.path / f"{name}.py"), self._clock()
        if file.signature != signature:
            file.signature, file.signature_since_s, file.is_quiet = signature, now, False
        if content.digest == file.digest:
            file.candidate = ""
            # An unreadable file can become readable without changing, if the mode of its folder
            # changes.
            file.is_quiet = content.error is None and now - file.signature_since_s >= RECENT_S
        elif file.candidate != content.digest:
            file.candidate, file.candidate_since_s, file.is_quiet = content.digest, now, False
            changes.is_settled = False
        elif self._is_stable(name, now - file.candidate_since_s):
            file.digest, file.candidate = content.digest, ""
            changes.changed.append(content)
        else:
            changes.is_settled = False
        (self._restless.discard if file.is_quiet else self._restless.add)(name)

    def _is_stable(self, name: str, unchanged_s: float) -> bool:
        if unchanged_s < SETTLE_S:
            return False
        return unchanged_s >= WRITER_PATIENCE_S or not is_open_for_writing(f"{self.path}/{name}.py")

    def _stat(self, name: str) -> tuple[int, float]:
        """Return a file's signature, and the time of its last change (seconds since the epoch)."""
        try:
            # The path is a string, because `Path` objects for 10,000 files take 20 ms per scan.
            info = os.stat(f"{self.path}/{name}.py")  # noqa: PTH116
        except OSError:
            return 0, 0.0
        self._has_links = self._has_links or info.st_nlink > 1
        # A program that copies a file can set `st_mtime`, but not `st_ctime`.
        return _signature(info), info.st_ctime

    def _note_missing(self, name: str, changes: FolderChanges) -> None:
        file, now = self._files[name], self._clock()
        if file.missing_since_s is None:
            file.missing_since_s = now
        if now - file.missing_since_s < REMOVAL_S:
            changes.is_settled = False
            return
        del self._files[name]
        self._gone.discard(name)
        self._restless.discard(name)
        changes.removed.append(name)


def _signature(info: os.stat_result) -> int:
    """Return a number that changes when the file changes, unless its time stamp stays the same."""
    return hash((info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino, info.st_mode))
