"""Copies the Python files of a folder, and leaves out everything that cannot be tenants' code."""

import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from tenantry.errors import TenantryError

MAX_FILES = 20_000
"""Maximum number of files in one copy. Copying 1,000 files takes 0.1 s."""

COPY_ATTEMPTS = 5
"""How often a folder is copied again because it has changed during the copy."""

_NOT_CODE = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})
"""Folders that hold no tenants' code. Neither does a folder whose name contains a dot, such as
`.git` or `python3.11`, because no import statement can name it."""

_COPIED_WHOLE = "migrations"
"""Folders whose other files are copied, too, because a migration can read the file beside it."""

_LABEL = ".folder"
"""The file in each copy that contains the path of the original folder."""


class CodeCopyError(TenantryError):
    """A folder with tenants' code cannot be copied."""


def copy_code(folder: str, target: Path, excluded: Collection[str]) -> None:
    """Copy the code in a folder, as it is between two changes if possible."""
    found = _code_files(folder, excluded)
    for attempt in range(COPY_ATTEMPTS):
        if attempt:
            shutil.rmtree(target)
            target.mkdir(mode=0o700)
        for name in found:
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError, PermissionError):  # an import finds no such file
                shutil.copyfile(os.path.join(folder, name), path)
        before, found = found, _code_files(folder, excluded)
        if before == found:
            break
    (target / _LABEL).write_text(folder, errors="surrogateescape")


def _code_files(folder: str, excluded: Collection[str]) -> dict[str, tuple[int, int, int]]:
    """Return the relative path of each file to copy, and what changes with its content."""
    found: dict[str, tuple[int, int, int]] = {}
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        relative, parents = waiting.pop()
        identity, entries = _entries(os.path.join(folder, relative))
        if identity in parents:  # a link to a folder that contains the link
            continue
        for entry in entries:
            name = os.path.join(relative, entry.name)
            with suppress(OSError):  # the entry has just been deleted, or is a broken link
                if entry.is_dir():
                    if may_hold_code(entry.name) and entry.path not in excluded:
                        waiting.append((name, parents | {identity}))
                elif entry.is_file() and _is_copied(name):
                    info = entry.stat()
                    found[name] = (info.st_mtime_ns, info.st_size, info.st_ino)
        if len(found) > MAX_FILES:
            raise CodeCopyError(
                f"{folder} holds more than {MAX_FILES:,} Python files; set APP_DIR to a folder "
                "that holds only the tenants' code."
            )
    return found


def _entries(folder: str) -> tuple[tuple[int, int], list[os.DirEntry[str]]]:
    """Return what identifies a folder, and its entries; no entries if it cannot be read."""
    try:
        info = os.stat(folder)
        with os.scandir(folder) as entries:
            return (info.st_dev, info.st_ino), list(entries)
    except OSError:
        return (0, 0), []


def may_hold_code(folder_name: str) -> bool:
    """Whether a folder inside a copied folder is copied, too."""
    return "." not in folder_name and folder_name not in _NOT_CODE


def _is_copied(relative: str) -> bool:
    folder, name = os.path.split(relative)
    return name.endswith(".py") or os.path.basename(folder) == _COPIED_WHOLE
