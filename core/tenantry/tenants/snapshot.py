"""Snapshots of the tenants folder, which `tenantry plan` saves and compares with.

A snapshot holds no secret, but salted fingerprints of secrets, from which short ones can be
guessed. So only its owner may read it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenantry.errors import TenantryError
from tenantry.tenants.diff import compare


def write_snapshot(path: Path, salt: str, tenants: Mapping[str, Any]) -> None:
    """Write a snapshot (mode 0600), completely or not at all.

    Raises:
        TenantryError: It cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump({"salt": salt, "tenants": tenants}, file, indent=2)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise TenantryError(f"cannot write {path}: {error.strerror}.") from error


def read_snapshot(path: Path) -> tuple[str, dict[str, Any]]:
    """Return a snapshot's salt and its tenants.

    Raises:
        TenantryError: The file is not a snapshot.
    """
    try:
        document = json.loads(path.read_bytes())
        salt, tenants = str(document["salt"]), dict(document["tenants"])
        compare(tenants, tenants, lambda _: ())  # fails if a description is malformed
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TenantryError(
            f"{path} is not a snapshot; create one with: tenantry plan --save FILE."
        ) from error
    return salt, tenants
