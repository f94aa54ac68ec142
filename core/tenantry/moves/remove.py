"""Writes a capsule of a tenant, and then removes the tenant.

The commit deletes the tenant file. Before the commit, the tenant is complete. After the commit, the
tenant's capsule is complete.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tenantry.capsules import write_capsule
from tenantry.errors import TenantryError, UnknownTenantError
from tenantry.moves.journal import Move, MoveJournal
from tenantry.moves.names import forget_name, own_secrets, secret_path
from tenantry.moves.rename import kept_database
from tenantry.moves.steps import MoveStep, run_steps, wait_until_followed, wait_until_held
from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import load_tenant, tenant_files

REMOVED_FOLDER = ".removed"
"""Name of the folder below `<data>` with the capsules and the former data of tenants."""

ProgressCallback = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Removal:
    """What the operator wants to keep from a removed tenant."""

    name: str
    archive: Path | None = None
    """The path of the capsule. The default is `<data>/.removed/NAME-TIME.capsule`."""
    is_archived: bool = True
    """Whether to write a capsule."""


@dataclass(frozen=True)
class RemovedTenant:
    """What `tenantry remove` reports."""

    archive: Path | None
    """Path of the capsule, or of the folder with data without a tenant; None if nothing is kept."""
    kept_database: str = ""
    """The URL of a database that was not removed, with a masked password."""


def remove_tenant(
    settings: HostSettings, removal: Removal, on_progress: ProgressCallback
) -> RemovedTenant:
    """Remove a tenant, or data without a tenant, or complete a run that was killed.

    Raises:
        UnknownTenantError: neither a tenant file, nor data, nor a secret with this name exists.
        TenantryError: the capsule cannot be written. The tenant is unchanged.
    """
    with MoveJournal(settings.data_dir, Move("remove", removal.name)) as journal:
        remove = _Remove(settings, removal, journal, on_progress)
        run_steps(remove.steps(), on_progress)
        return remove.result


class _Remove:
    """The steps of one `remove`, which can continue the steps of a killed run."""

    def __init__(
        self,
        settings: HostSettings,
        removal: Removal,
        journal: MoveJournal,
        on_progress: ProgressCallback,
    ) -> None:
        self._settings = settings
        self._removal = removal
        self._journal = journal
        self._on_progress = on_progress
        self._name = removal.name
        self._path = settings.tenants_dir / f"{removal.name}.py"
        self._folder = settings.data_dir / removal.name
        removed = settings.data_dir / REMOVED_FOLDER
        self._aside = removed / f"{removal.name}-{journal.move.started}"
        self._archive = removal.archive or self._aside.with_name(f"{self._aside.name}.capsule")
        self.result = RemovedTenant(self._archive if removal.is_archived else None)

    def steps(self) -> list[MoveStep]:
        """Return the remaining steps."""
        names = [path.stem for path in tenant_files(self._settings.tenants_dir)]
        after = [
            MoveStep("waiting for workers", self._wait_for_workers),
            MoveStep("removing the folder", self._remove_folder),
            MoveStep("removing the secrets", self._remove_secrets),
            MoveStep("removing counts", self._forget),
        ]
        if self._name in names:
            return [
                MoveStep("waiting for requests", self._hold),
                MoveStep("writing the capsule", self._write_capsule),
                MoveStep("removing the tenant file", self._commit),
                *after,
            ]
        if self._journal.is_resumed and self._journal.move.is_committed:
            return after
        is_unknown = not self._folder.exists() and not own_secrets(self._settings, self._name)
        if is_unknown and not self._journal.is_resumed:
            raise UnknownTenantError(self._name, names)
        return [
            MoveStep("setting the data aside", self._set_aside),
            MoveStep("removing counts", self._forget),
        ]

    def _hold(self) -> None:
        wait_until_held(self._settings.data_dir, self._name)

    def _write_capsule(self) -> None:
        if not self._removal.is_archived:
            with suppress(TenantryError):  # without a capsule, the tenant file may be invalid
                database = kept_database(*load_tenant(self._settings, self._name))
                self.result = RemovedTenant(None, database)
            return
        tenant, loaded = load_tenant(self._settings, self._name)
        self._archive.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_capsule(tenant, loaded, self._settings.data_dir, self._archive, self._on_progress)
        self.result = RemovedTenant(self._archive, kept_database(tenant, loaded))

    def _commit(self) -> None:
        secrets = dict.fromkeys(own_secrets(self._settings, self._name), "")
        self._journal.update(secrets=secrets, is_committed=True)
        self._journal.keep()
        self._path.unlink()

    def _wait_for_workers(self) -> None:
        wait_until_followed(self._settings.data_dir, gone=self._name)

    def _remove_folder(self) -> None:
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def _remove_secrets(self) -> None:
        for variable in self._journal.move.secrets:
            secret_path(self._settings, variable).unlink(missing_ok=True)

    def _forget(self) -> None:
        forget_name(self._settings, self._name)

    def _set_aside(self) -> None:
        """Move data without a tenant to `<data>/.removed`, or delete it."""
        names = own_secrets(self._settings, self._name)
        secrets = [secret_path(self._settings, name) for name in names]
        if self._removal.is_archived:
            if secrets or self._folder.exists():
                self._aside.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in secrets:
                path.rename(self._aside / path.name)
            if self._folder.exists():
                self._folder.rename(self._aside / "data")
            self.result = RemovedTenant(self._aside if self._aside.exists() else None)
            return
        for path in secrets:
            path.unlink()
        self._remove_folder()
