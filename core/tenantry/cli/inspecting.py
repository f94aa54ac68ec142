"""Removes the empty folders that commands create when they build tenants to inspect them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import tenant_files


@contextmanager
def leaving_no_empty_folder(settings: HostSettings) -> Iterator[None]:
    """Remove the empty data folders that the `with` block has created.

    A build creates the folder of its tenant, because SQLite creates no folder for a database.
    """
    folders = [settings.data_dir / path.stem for path in tenant_files(settings.tenants_dir)]
    missing = [folder for folder in (*folders, settings.data_dir) if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # the folder does not exist, or contains what the app has saved
                folder.rmdir()
