"""Copies a tenant's folder to a folder for the tenant's new name, while the tenant answers 503.

Ordinary files become hard links, because the original folder is removed afterwards. SQLite
databases are copied with SQLite's backup API, because a file with two names would have two
write-ahead logs.
"""

import os
import shutil
from pathlib import Path

from tenantry.capsules.sqlite_copy import companion_of, copy_database, is_sqlite_file


def copy_tenant_folder(source: Path, target: Path, *, old: str, new: str) -> None:
    """Copy a tenant's folder to a new folder, which replaces an existing folder.

    Args:
        source: the tenant's folder.
        target: the new folder.
        old: the tenant's former name. The name of the default database is the former name.
        new: the tenant's new name.
    """
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(mode=0o700, parents=True)
    if not source.is_dir():
        return
    database, new_database = f"{old}.sqlite3", f"{new}.sqlite3"
    for folder, folders, files in os.walk(source):
        below = Path(folder).relative_to(source)
        for name in folders:
            path = Path(folder, name)
            if path.is_symlink():
                (target / below / name).symlink_to(path.readlink())
            else:
                (target / below / name).mkdir(mode=path.stat().st_mode & 0o777)
        for name in files:
            is_main = below == Path() and name.startswith(database)
            renamed = new_database + name.removeprefix(database) if is_main else name
            _copy(Path(folder, name), target / below / renamed)


def _copy(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif not source.is_file() or companion_of(source) is not None:
        return  # the file is a socket, or belongs to a database
    elif is_sqlite_file(source):
        copy_database(source, target)
    else:
        try:
            target.hardlink_to(source)
        except OSError:  # a hard link is impossible, for example on another disk
            shutil.copy2(source, target)
