"""The code snapshots of one host: a generation at its start, and one for each restart.

The snapshots are the folders `<data>/.code/HOST/NUMBER/`. The gunicorn master makes the folder HOST
when it starts, and a new generation when it reloads. `tenantry restart` also makes a generation. A
worker uses the newest generation when it starts, and for as long as it lives. Under other servers,
each process that loads the host has a folder HOST of its own, which its forks use, too.

A process holds shared locks on its folders. The kernel releases the locks when the process ends,
so a folder without a lock is unused and can be removed.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tenantry.private_code.snapshot import CodeSnapshot, use_snapshot, used_snapshot

_FOLDER = ".code"

_host: Path | None = None
"""The folder of the host's generations, which forks inherit."""

_follows_disk = False
"""Whether the host always reads the files on disk."""

_locks: list[int] = []
"""File descriptors of the locked folders, which stay open until the process ends."""


def begin_host(data_dir: Path) -> Path:
    """Make the folder of a new host with its first generation, and remove those of ended hosts.

    Raises:
        OSError: the data folder is not writable.
    """
    global _host  # noqa: PLW0603 - a host and its forks are one group of processes
    parent = data_dir.absolute() / _FOLDER
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in parent.iterdir():
        remove_if_unused(folder)
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{os.getpid()}-"))
        if _lock(folder):  # another host may remove the folder before it is locked
            break
    _host = folder
    return folder


def follow_disk() -> None:
    """Let this process and its forks always read the files on disk."""
    global _follows_disk  # noqa: PLW0603 - the server decides before it forks
    _follows_disk = True


def host_name() -> str:
    """Return the name of the host's folder, or "" without one."""
    return "" if _host is None else _host.name


def use_newest_generation(data_dir: Path, excluded: Collection[str]) -> None:
    """Let this process use the newest generation of its host until the process ends.

    A process without a master that has begun a host begins a host of its own.

    Args:
        data_dir: the host's data folder.
        excluded: folders that hold no code, such as the data folder.

    Raises:
        OSError: the data folder is not writable.
    """
    if _follows_disk:
        return
    host = _host or begin_host(data_dir)
    newest = _newest(host)
    while not _lock(newest):  # a restart that failed has removed the generation
        newest = _newest(host)
    use_snapshot(CodeSnapshot(newest, excluded))


def begin_generation() -> None:
    """Make a new generation, which workers that start later use."""
    if _host is not None:
        (_host / f"{int(_newest(_host).name) + 1}").mkdir(mode=0o700)


def remove_old_generations() -> None:
    """Remove the generations that no process uses, except the newest."""
    if _host is None:
        return
    with suppress(OSError):  # for example, no file descriptor is free; the next call removes them
        newest = int(_newest(_host).name)
        for folder in _host.iterdir():
            if folder.name.isdecimal() and int(folder.name) < newest:
                remove_if_unused(folder)


def end_host() -> None:
    """Remove all generations of the host."""
    if _host is not None:
        shutil.rmtree(_host, ignore_errors=True)


@contextmanager
def new_generation(data_dir: Path, host: str, excluded: Collection[str]) -> Iterator[Path]:
    """Use a new generation of a running host in the `with` block, and publish it at the end.

    Yields:
        The folder of the generation after the `with` block.
    """
    folder = data_dir.absolute() / _FOLDER / host
    newest = _newest(folder)
    target = newest.with_name(f"{int(newest.name) + 1}")
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix="new-"))
    before = used_snapshot()
    use_snapshot(CodeSnapshot(temporary, excluded))
    try:
        yield target
        temporary.rename(target)
    finally:
        use_snapshot(before)
        shutil.rmtree(temporary, ignore_errors=True)


def remove_if_unused(folder: Path) -> None:
    """Remove the folder of a generation or of a host, unless a process has locked it."""
    with suppress(OSError):  # the folder is locked, or another process removes it
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(fd)


def _newest(host: Path) -> Path:
    """Return the newest generation, which is made again if somebody has removed the folder."""
    host.mkdir(mode=0o700, parents=True, exist_ok=True)
    numbers = [int(one.name) for one in host.iterdir() if one.name.isdecimal()]
    newest = host / str(max(numbers, default=1))
    newest.mkdir(mode=0o700, exist_ok=True)
    return newest


def _lock(folder: Path) -> bool:
    """Lock a folder until this process ends, and return False if the folder has been removed."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    fcntl.flock(fd, fcntl.LOCK_SH)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(fd), folder.stat()):
            _locks.append(fd)
            return True
    os.close(fd)
    return False
