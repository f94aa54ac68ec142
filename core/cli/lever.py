"""Pulls one lever of one tenant; what `disable`, `enable` and `maintenance` have in common."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from config.settings import read_settings
from core.cli.tenants import known_name
from core.errors import TenantryError
from core.levers import Levers, read_levers, write_levers


def pull(name: str, **changes: bool | str) -> Levers:
    """Change some of a tenant's levers, in running workers too; return all of them.

    Of two commands at once the second waits for the first, and loses nothing of it.

    Raises:
        UnknownTenantError: it has no file.
        TenantryError: its levers cannot be read or written; they are as they were then.
    """
    settings = read_settings()
    known_name(settings, name)
    with _alone(lock_file(settings.data_dir)):
        levers = replace(read_levers(settings.data_dir, name), **changes)  # type: ignore[arg-type]
        write_levers(settings.data_dir, name, levers)
    return levers


def lock_file(data_dir: Path) -> Path:
    """Return the file that who changes levers has locked."""
    return data_dir / ".levers.lock"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        text = f"cannot write {path}: {error.strerror}; nothing was changed."
        raise TenantryError(text) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)  # which unlocks it
