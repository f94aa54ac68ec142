"""Tries the migrations of tenants on copies of their databases, for commands that inspect.

A trial finds a failing migration before a host or `tenantry db upgrade` runs the migration. Only
SQLite databases are copied. For other databases, the journal tells whether the last upgrade failed.
A trial does not change the databases themselves.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tenantry.database.url import is_in_memory, parse_database_url, plain_file
from tenantry.errors import EndpointError, Problem, TenantryError
from tenantry.migrations.fleet_run import last_step
from tenantry.migrations.revisions import Branch, compare, read_branches, revision_problems
from tenantry.migrations.runner import (
    MigrationResult,
    MigrationRunner,
    MigrationTarget,
    migration_target,
)
from tenantry.migrations.version_table import read_versions
from tenantry.tenants.model import Tenant

TRIAL_TIMEOUT_S = 60.0
"""Time limit in seconds for the migrations of one copy."""

COPY_LIMIT_BYTES = 256 << 20
"""Maximum size in bytes of a database that is copied. The migrations of a larger database are not
tried, because the copy would take too much time and disk space."""


@dataclass(frozen=True)
class _Trial:
    tenant: Tenant
    target: MigrationTarget
    file: Path | None
    """The SQLite file, or None for another kind of database."""


def find_migration_problems(
    tenants: Sequence[Tenant], data_dir: Path, *, is_foreseeing: bool = False
) -> Iterator[tuple[Tenant, Problem]]:
    """Yield a problem for each tenant whose migrations fail now or failed in the last upgrade.

    Args:
        tenants: the tenants to try.
        data_dir: the host's data folder.
        is_foreseeing: whether to also yield what PostgreSQL would refuse.
    """
    trials = [trial for tenant in tenants if (trial := _trial_of(tenant, data_dir.absolute()))]
    with (
        TemporaryDirectory(prefix="tenantry-trial-") as folder,
        MigrationRunner(TRIAL_TIMEOUT_S) as runner,
    ):
        copies = _Copies(Path(folder), runner, is_foreseeing=is_foreseeing)
        for trial in trials:
            if is_foreseeing:
                yield from _static_problems(trial)
            texts = copies.problems(trial) if trial.file else _recorded_problems(trial, data_dir)
            for text in texts:
                yield trial.tenant, Problem(trial.tenant.file, text, "BLUEPRINTS")


def find_untried(tenants: Sequence[Tenant], data_dir: Path) -> Iterator[tuple[Tenant, Problem]]:
    """Yield a note for each tenant whose pending migrations are not tried.

    The reason is a database that is larger than `COPY_LIMIT_BYTES`.
    """
    for tenant in tenants:
        file = plain_file(tenant.database_uri.get_secret_value())
        if file is None or not _is_large(file):
            continue
        trial = _trial_of(tenant, data_dir.absolute())
        if trial is not None and _state(trial.target) == "behind":
            text = (
                f"its pending migrations are not tried on a copy, because {file} has more "
                f"than {COPY_LIMIT_BYTES >> 20} MiB; make a backup, then run: tenantry db upgrade "
                f"--tenant {tenant.name}"
            )
            yield tenant, Problem(tenant.file, text, "BLUEPRINTS")


class _Copies:
    """Migrates copies of SQLite databases in a folder that the caller removes."""

    def __init__(self, folder: Path, runner: MigrationRunner, *, is_foreseeing: bool) -> None:
        self._folder = folder
        self._runner = runner
        self._is_foreseeing = is_foreseeing
        # The dict contains the results for empty databases, because many tenants have the same
        # endpoints.
        self._empty: dict[tuple[Branch, ...], MigrationResult] = {}

    def problems(self, trial: _Trial) -> Iterator[str]:
        """Yield the problems of a tenant's migrations."""
        if self._is_foreseeing:
            for text in self._on_empty(trial).refusals:
                yield f"PostgreSQL would refuse its migrations: {text.rstrip('.')}."
        result = self._result(trial)
        if result is not None and result.state not in ("migrated", "unchanged"):
            yield f"its migration fails: {result.reason}"

    def _result(self, trial: _Trial) -> MigrationResult | None:
        """Return the result for a copy of the database, or None if there is nothing to migrate."""
        state = _state(trial.target)
        if state == "new":
            return self._on_empty(trial)
        if state == "behind" and trial.file and _copy(trial.file, self._path(trial)):
            return self._migrate(trial, is_foreseeing=False)
        return None

    def _on_empty(self, trial: _Trial) -> MigrationResult:
        branches = trial.target.branches
        if branches not in self._empty:
            self._empty[branches] = self._migrate(trial, is_foreseeing=self._is_foreseeing)
        return self._empty[branches]

    def _migrate(self, trial: _Trial, *, is_foreseeing: bool) -> MigrationResult:
        path = self._path(trial)
        target = MigrationTarget(
            tenant=trial.tenant.name,
            url=f"sqlite:///{path}",
            branches=trial.target.branches,
            lock_file=path.with_suffix(".lock"),
            is_foreseeing=is_foreseeing,
        )
        try:
            return self._runner.upgrade(target)
        finally:
            path.unlink(missing_ok=True)

    def _path(self, trial: _Trial) -> Path:
        return self._folder / f"{trial.tenant.name}.sqlite3"


def _trial_of(tenant: Tenant, data_dir: Path) -> _Trial | None:
    try:
        branches = read_branches(tenant.blueprints, tenant.app_dir)
    except EndpointError:  # building the tenant's app reports the error
        return None
    if not branches:
        return None
    text = tenant.database_uri.get_secret_value()
    target = migration_target(tenant.name, text, branches, data_dir, tenant.database_options)
    url = parse_database_url(text)
    if url.get_backend_name() != "sqlite":
        return _Trial(tenant, target, None)
    if is_in_memory(url):
        return None
    return _Trial(tenant, target, Path(str(url.database).removeprefix("file:")))


def _state(target: MigrationTarget) -> str:
    """Return `new` for an empty database, "" for an unreadable one, or the state of the tables."""
    try:
        versions = read_versions(parse_database_url(target.url), target.options)
    except Exception:  # noqa: BLE001 - drivers raise many classes; `check` reports the database
        return ""
    return compare(target.branches, versions).state if versions else "new"


def _copy(source: Path, copy: Path) -> bool:
    """Copy a SQLite database that other processes may use.

    Return whether the database was small enough.
    """
    if not source.is_file() or _is_large(source):
        return False
    with (
        closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as old,
        closing(sqlite3.connect(copy)) as new,
    ):
        old.backup(new)
    return True


def _is_large(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > COPY_LIMIT_BYTES


def _recorded_problems(trial: _Trial, data_dir: Path) -> Iterator[str]:
    """Yield why the last upgrade of a database failed, if the database is still outdated."""
    try:
        step = last_step(trial.target, data_dir)
    except TenantryError:
        return
    if step is not None and step.state == "failed" and _state(trial.target) in ("behind", "new"):
        yield f"its last migration failed: {step.reason}"


def _static_problems(trial: _Trial) -> Iterator[tuple[Tenant, Problem]]:
    for branch in trial.target.branches:
        index = trial.tenant.blueprints.index(branch.endpoint)
        for text in revision_problems(branch):
            yield trial.tenant, Problem(trial.tenant.file, text, f"BLUEPRINTS[{index}]")
