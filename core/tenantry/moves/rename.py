"""Renames a tenant, with its data, its secrets, its operator state and its usage.

The new folder is a complete copy of the old folder. The commit renames the tenant file with one
system call. Before the commit, the tenant is complete under its old name. After the commit, the
tenant is complete under its new name.
"""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tenantry.database.url import default_database_url, plain_file
from tenantry.errors import TenantryError, UnknownTenantError
from tenantry.migrations.fleet_run import identity_in_journal
from tenantry.migrations.journal import Journal, journal_file
from tenantry.moves.journal import Move, MoveJournal
from tenantry.moves.names import forget_name, own_secrets, renamed_text, secret_path
from tenantry.moves.steps import (
    MoveStep,
    replace_file,
    run_steps,
    wait_until_followed,
    wait_until_held,
)
from tenantry.moves.tenant_copy import copy_tenant_folder
from tenantry.observability.usage_store import rename_usage
from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import load_tenant
from tenantry.tenants.file import FileContent, content_digest
from tenantry.tenants.loader import LoadedFile, Loader
from tenantry.tenants.model import Tenant
from tenantry.tenants.new_file import check_name_is_free
from tenantry.tenants.validation import load_content, validate_loaded


@dataclass(frozen=True)
class RenamedTenant:
    """The report of `tenantry rename`."""

    path: Path
    """The path of the tenant file."""
    prefix: str
    kept_database: str
    """The URL of a database that keeps its name, with a masked password; "" for the default."""


def rename_tenant(
    settings: HostSettings, name: str, new: str, on_progress: Callable[[str, int, int], None]
) -> RenamedTenant:
    """Give a tenant a new name, or complete an earlier run of this function that was killed.

    The tenant keeps its address. While the function runs, the tenant answers 503.

    Raises:
        UnknownTenantError: the tenant has no file.
        TenantryError: the new name is taken, or the data cannot be copied. The tenant is unchanged.
    """
    with MoveJournal(settings.data_dir, Move("rename", name, new)) as journal:
        rename = _Rename(settings, journal)
        run_steps(rename.steps(), on_progress)
        return rename.result()


class _Rename:
    """The steps of one `rename`, which can continue the steps of a killed run."""

    def __init__(self, settings: HostSettings, journal: MoveJournal) -> None:
        self._settings = settings
        self._journal = journal
        self._name, self._new = journal.move.name, journal.move.new
        self._path = settings.tenants_dir / f"{self._name}.py"
        self._new_path = settings.tenants_dir / f"{self._new}.py"
        self._folder = settings.data_dir / self._name
        self._new_folder = settings.data_dir / self._new
        self._undo = ExitStack()
        self._is_committed = (
            journal.is_resumed and self._new_path.exists() and not self._path.exists()
        )
        if not self._is_committed:
            self._prepare()

    def steps(self) -> list[MoveStep]:
        """Return the remaining steps."""
        before = [
            MoveStep("waiting for requests", self._hold),
            MoveStep("copying files", self._copy_folder),
            MoveStep("copying secrets", self._copy_secrets),
            MoveStep("writing the tenant file", self._write_file),
            MoveStep("renaming the tenant file", self._commit),
        ]
        after = [
            MoveStep("waiting for workers", self._wait_for_workers),
            MoveStep("renaming usage", self._rename_usage),
            MoveStep("renaming migration runs", self._rename_runs),
            MoveStep("removing the old folder", self._remove_folder),
            MoveStep("removing the old secrets", self._remove_secrets),
            MoveStep("removing the old counts", self._forget),
        ]
        return after if self._is_committed else [*before, *after]

    def result(self) -> RenamedTenant:
        """Return what the command reports."""
        tenant, loaded = load_tenant(self._settings, self._new)
        return RenamedTenant(self._new_path, tenant.address.text, kept_database(tenant, loaded))

    def _prepare(self) -> None:
        """Check that the tenant can be renamed, before anything changes."""
        try:
            tenant, loaded = load_tenant(self._settings, self._name)
            if not self._journal.is_resumed:
                check_name_is_free(self._settings, self._new)
            _check_database(tenant, loaded, self._folder)
            if not self._journal.move.secrets:
                self._journal.update(secrets=self._new_secrets())
        except BaseException as error:
            # If somebody has removed the tenant file, no later run could complete the move.
            if not self._journal.is_resumed or isinstance(error, UnknownTenantError):
                self._journal.discard()
            raise
        self._tenant, self._loaded = tenant, loaded

    def _new_secrets(self) -> dict[str, str]:
        """Return the new name of each secret of the tenant."""
        old, new = _variable_stem(self._name), _variable_stem(self._new)
        return {
            variable: new + variable.removeprefix(old)
            for variable in own_secrets(self._settings, self._name)
        }

    def _hold(self) -> None:
        wait_until_held(self._settings.data_dir, self._name)

    def _copy_folder(self) -> None:
        self._undo.callback(shutil.rmtree, self._new_folder, ignore_errors=True)
        with self._undoing_on_error():
            copy_tenant_folder(self._folder, self._new_folder, old=self._name, new=self._new)

    def _copy_secrets(self) -> None:
        with self._undoing_on_error():
            for old, new in self._journal.move.secrets.items():
                source, target = (secret_path(self._settings, one) for one in (old, new))
                if target.exists() and target.read_bytes() == source.read_bytes():
                    continue
                target.hardlink_to(source)
                self._undo.callback(target.unlink, missing_ok=True)

    def _write_file(self) -> None:
        """Write the new text under the old name.

        Under the old name, the old text and the new text describe the same tenant.
        """
        source = self._path.read_bytes()
        values, assignments = self._loaded.values, dict[str, object]()
        if "HOSTS" not in values and self._tenant.hosts:  # from the host's HOST_PATTERN
            assignments = {"HOSTS": list(self._tenant.hosts)}
        elif values.get("URL_PREFIX") is None and not self._tenant.hosts:
            assignments = {"URL_PREFIX": self._tenant.url_prefix}
        with self._undoing_on_error():
            text = renamed_text(source, self._journal.move.secrets, assignments)
            self._check_text(text)
            replace_file(self._path, text)
            self._undo.callback(replace_file, self._path, source.decode())

    def _check_text(self, text: str) -> None:
        """Check that the new text describes the same tenant under the new name.

        Raises:
            TenantryError: the tenant would get another secret key, address or database.
        """
        content = FileContent(self._new_path, content_digest(text.encode()), text.encode())
        with Loader(data_dir=self._settings.data_dir) as loader:
            loaded = load_content(content, loader)
        renamed = validate_loaded(loaded, self._settings)
        is_default = loaded.values.get("DATABASE_URI") is None
        changed = {
            "SECRET_KEY": renamed.secret_key != self._tenant.secret_key,
            "HOSTS": renamed.hosts != self._tenant.hosts,
            "URL_PREFIX": renamed.url_prefix != self._tenant.url_prefix,
            "DATABASE_URI": not is_default and renamed.database_uri != self._tenant.database_uri,
        }
        if keys := [key for key, is_changed in changed.items() if is_changed]:
            text = f"{self._path}: {keys[0]!r} depends on the name of the file"
            raise TenantryError(f"{text}; write its value into the file.")

    def _commit(self) -> None:
        with self._undoing_on_error():
            if self._new_path.exists():
                raise TenantryError(f"{self._new_path} was created in the meantime; remove it.")
            self._journal.keep()
            self._path.rename(self._new_path)
        self._undo.pop_all()

    def _wait_for_workers(self) -> None:
        wait_until_followed(self._settings.data_dir, gone=self._name, present=self._new)

    def _rename_usage(self) -> None:
        rename_usage(self._settings.data_dir, self._name, self._new)

    def _rename_runs(self) -> None:
        """Rename the tenant in the migration journal, for `tenantry db downgrade`."""
        data_dir = self._settings.data_dir
        if journal_file(data_dir).exists():
            before, after = (
                identity_in_journal(default_database_url(data_dir, name), data_dir)
                for name in (self._name, self._new)
            )
            with Journal(data_dir) as journal:
                journal.rename_tenant(self._name, self._new, {before: after})

    def _remove_folder(self) -> None:
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def _remove_secrets(self) -> None:
        for old in self._journal.move.secrets:
            secret_path(self._settings, old).unlink(missing_ok=True)

    def _forget(self) -> None:
        forget_name(self._settings, self._name)

    def _undoing_on_error(self) -> "_Undoing":
        return _Undoing(self._undo, self._journal)


class _Undoing:
    """A context manager that undoes the steps of a move if the `with` block fails."""

    def __init__(self, undo: ExitStack, journal: MoveJournal) -> None:
        self._undo = undo
        self._journal = journal

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._undo.close()
            self._journal.discard()


def _variable_stem(name: str) -> str:
    return name.upper().replace("-", "_")


def _check_database(tenant: Tenant, loaded: LoadedFile, folder: Path) -> None:
    """Check that the tenant file does not name a database inside the folder that moves.

    Raises:
        TenantryError: after the move, the file would name a database that does not exist.
    """
    if loaded.values.get("DATABASE_URI") is None:
        return
    file = plain_file(tenant.database_uri.get_secret_value())
    if file is not None and Path(file).is_relative_to(folder.absolute()):
        raise TenantryError(
            f"{loaded.file}: 'DATABASE_URI' names {file}, in the tenant's own folder, which gets "
            f"another name; name the file {tenant.name}.sqlite3 and remove the key, or move the "
            "file out of the folder."
        )


def kept_database(tenant: Tenant, loaded: LoadedFile) -> str:
    """Return the URL of a database outside the tenant's folder, or ""."""
    if loaded.values.get("DATABASE_URI") is None:
        return ""
    return tenant.database_url.render_as_string(hide_password=True)
