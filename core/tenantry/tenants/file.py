"""Tenant files on disk: their paths, their content, and whether they are safe to read.

This module only reads tenant files; the module `loader` runs them.
"""

import fcntl
import hashlib
import os
import shlex
import signal
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tenantry.errors import Problem, TenantFileError
from tenantry.files.permissions import is_writable_by_all

FILE_LIMIT_BYTES = 1 << 20
"""Maximum size of a tenant file in bytes. A typical tenant file has 1 KiB."""


@dataclass(frozen=True, slots=True)
class FileContent:
    """The content of one tenant file, or the error that makes the file unreadable."""

    path: Path
    digest: str = ""
    """SHA-256 of the source or of the error, in hexadecimal; empty before the file is read."""
    source: bytes = b""
    error: TenantFileError | None = None


def list_tenant_files(folder: Path) -> list[Path]:
    """Return the paths of the tenant files in `folder`, sorted by name.

    Raises:
        OSError: the folder does not exist or cannot be read.
    """
    with os.scandir(folder) as entries:
        names = [entry.name[:-3] for entry in entries if is_tenant_file_name(entry.name)]
    return [folder / f"{name}.py" for name in sorted(names)]


def is_tenant_file_name(name: str) -> bool:
    """Whether a file name in the tenants folder is the name of a tenant file."""
    return name.endswith(".py") and name[0] not in "._"


def read_content(path: Path) -> FileContent:
    """Return a tenant file's current content, or the error that makes the file unreadable."""
    try:
        source = read_tenant_file(path)
    except TenantFileError as error:
        return FileContent(path, content_digest(str(error).encode()), error=error)
    return FileContent(path, content_digest(source), source)


def content_digest(source: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal. Equal digests share one string."""
    return sys.intern(hashlib.sha256(source).hexdigest())


def read_tenant_file(path: Path) -> bytes:
    """Return the bytes of a tenant file, without blocking if the path is a FIFO or a device.

    Raises:
        TenantFileError: the path is not a regular file inside the tenants folder, the file is
            unreadable or larger than 1 MiB, or every user can write to the file or the folder.
    """
    try:
        if not Path(os.path.realpath(path, strict=True)).is_relative_to(path.parent.resolve()):
            _reject(path, "links to a file outside the tenants folder; put the file itself here.")
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what = "is a link that cannot be followed" if path.is_symlink() else "cannot be read"
        _reject(path, f"{what}: {error.strerror}; fix or remove it.")
    try:
        info = os.fstat(fd)
        _check_kind_and_mode(path, info)
        with os.fdopen(fd, "rb", closefd=False) as file:
            source = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        _reject(path, f"cannot be read: {error.strerror}; fix or remove it.")
    finally:
        os.close(fd)
    if len(source) > FILE_LIMIT_BYTES:
        _reject(path, f"is larger than 1 MiB ({info.st_size:,} bytes); keep only settings in it.")
    return source


def _check_kind_and_mode(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        _reject(path, "is not a regular file; remove it.")
    if info.st_mode & stat.S_IWOTH:
        command = f"chmod o-w {shlex.quote(display_path(path))}"
        _reject(path, f"every user can write to it; run: {command}")
    # If the file is a link, its target can be in another folder.
    for folder in (path.parent, Path(os.path.realpath(path)).parent):
        if is_writable_by_all(folder):
            command = f"chmod o-w {shlex.quote(display_path(folder))}"
            _reject(path, f"every user can write to its folder; run: {command}")


def _reject(path: Path, text: str) -> NoReturn:
    raise TenantFileError([Problem(display_path(path), text)]) from None


def is_open_for_writing(path: str) -> bool:
    """Whether a process has a file open for writing. Thread-safe.

    If a program pauses while it writes a tenant file, the first half can look like a valid file.
    The result is False if the file belongs to another user, or if the file system does not support
    leases.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # The kernel denies a read lease while a writer has the file open. The lease lasts a few
        # microseconds. If a writer opens the file in that time, the writer waits, and the kernel
        # signals the process that holds the lease. The default signal, SIGIO, would end this
        # process; SIGURG is ignored.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(
            fd, fcntl.F_SETLEASE, fcntl.F_UNLCK
        )  # a forked process can share the lease, so closing the file is not enough
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def display_path(path: Path) -> str:
    """Return a path for messages, relative if it is inside the current folder."""
    is_below = path.absolute().is_relative_to(Path.cwd())
    return printable(os.path.relpath(path) if is_below else str(path))


def printable(text: str) -> str:
    """Return `text` with unprintable characters escaped. A file name can contain any byte."""
    return text if text.isprintable() else ascii(text)[1:-1]
