"""Finds out which other users of the machine can read or change a file.

The processes of Tenantry create files for their own user only. The host also executes files that
other programs create, such as tenant files and endpoints. A user who can write to an executed file
can act as the host.
"""

import grp
import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path

OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""The mode bits of all users except the owner."""


def create_private_files() -> None:
    """Give only this user access to the files, folders and sockets that this process creates."""
    os.umask(os.umask(OTHERS) | OTHERS)


def is_writable_by_all(path: Path) -> bool:
    """Whether every user of the machine can change a file, or the files in a folder.

    Raises:
        OSError: the path does not exist or is not accessible.
    """
    return bool(path.stat().st_mode & stat.S_IWOTH) and not _is_mounted_read_only(path)


def is_replaceable(folder: Path) -> bool:
    """Whether every user can rename other users' files in a folder, unlike in `/tmp`."""
    try:
        return is_writable_by_all(folder) and not folder.stat().st_mode & stat.S_ISVTX
    except OSError:
        return False


def describe_writers(path: Path, *, with_others: bool = False) -> str:
    """Return which users besides this user and root can change a file; "" if no other user can.

    Args:
        path: a file, or a folder.
        with_others: whether the result includes `every user` for a world-writable file.
    """
    try:
        info = path.stat()
        if _is_mounted_read_only(path):
            return ""
    except OSError:
        return ""
    writers = []
    if info.st_uid not in {0, os.geteuid()}:
        writers.append(f"its owner {_user(info.st_uid)}")
    if info.st_mode & stat.S_IWGRP:
        writers.append(f"the group {_group(info.st_gid)}")
    if with_others and info.st_mode & stat.S_IWOTH:
        writers.append("every user")
    return " and ".join(writers)


def find_open(folder: Path) -> list[str]:
    """Return the names in a folder that other users can access, with `.` for the folder itself.

    The function does not look into subfolders, and returns nothing for a missing folder.
    """
    found = []
    with suppress(OSError):
        if folder.stat().st_mode & OTHERS:
            found.append(".")
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):  # another process has deleted the path
                    if not entry.is_symlink() and entry.stat().st_mode & OTHERS:
                        found.append(entry.name)
    return sorted(found)


def _is_mounted_read_only(path: Path) -> bool:
    # Kubernetes mounts a ConfigMap with mode 0777, but read-only.
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
