"""Rejects requests to endpoints whose tables are older than the code.

While the database is behind the code, requests to endpoints with tables get 503. When the database
is up to date, the guard sends no queries to the database. If a statement fails because a table or a
column is missing, the guard reads the revisions of the database again.

When the host builds a tenant's app, the guard upgrades the tenant's default database. Only
`tenantry db` upgrades other databases. The journal also records upgrades by the guard, so `tenantry
db downgrade` undoes these upgrades. After an operator has downgraded a database, the guard does not
upgrade that database again. Commands that inspect a tenant never upgrade its database.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from flask import Blueprint, Flask, Response, g, has_app_context, request
from werkzeug.exceptions import HTTPException

from tenantry.database.errors import DatabaseDownError
from tenantry.database.session import Database, database_of, db
from tenantry.database.url import default_database_url, is_in_memory
from tenantry.errors import TenantryError
from tenantry.http.problem import ProblemResponse
from tenantry.migrations.fleet_run import last_step, upgrade_for_host
from tenantry.migrations.revisions import (
    RevisionStatus,
    compare,
    describe_unknown,
    format_revisions,
    read_branches,
)
from tenantry.migrations.runner import MigrationTarget, migration_target
from tenantry.migrations.version_table import (
    VERSIONS_QUERY,
    check_file_not_lost,
    describe_error,
    is_missing_table_or_column,
    read_versions_on,
    sqlite_file_exists,
)
from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine import ExceptionContext

RECHECK_S = 1.0
"""Minimum seconds between two reads of the revisions.

The guard notices an upgrade without a restart. If an endpoint keeps querying a missing table, the
guard reads the revisions at most once per second.
"""

UPGRADE_WAIT_S = 5.0
"""Maximum seconds that a request waits while another request reads the revisions or upgrades the
database."""

DATABASE_BEHIND = ProblemResponse(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "This application is not available until its database is upgraded; try again later.",
    retry_after_s=5,
)

DATABASE_TOO_SLOW = ProblemResponse(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The database of this application took too long; try again later.",
    retry_after_s=5,
)
"""The response to a request if the server canceled a statement (`statement_timeout`)."""

_CANCELED = "57014"  # SQLSTATE of query_canceled
_EXTENSION = "tenantry.migration_guard"
# Marks, in `flask.g`, a request that failed because a table or column is missing.
_HAS_MISSED = "tenantry_missed_table"
_HAS_TIMED_OUT = "tenantry_timed_out"
_logger = logging.getLogger(__name__)


class MigrationGuard:
    """Decides whether requests may use the tables of an app's database. Thread-safe.

    Args:
        target: the database of the tenant, and the revisions in the code.
        database: the app's connections to the database.
        is_default: whether this is the default database, which the guard upgrades.
        clock: a function that returns seconds.
    """

    def __init__(
        self,
        target: MigrationTarget,
        database: Database,
        *,
        is_default: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_default = is_default
        """Whether the database is the tenant's default database, which the guard may upgrade."""
        self.is_open = False
        """Whether requests may reach endpoints with tables.

        A database error closes the guard without taking the lock. A thread that is reading the
        revisions at that moment may open the guard again. In that case, the next failing statement
        closes the guard.
        """
        self.problem = ""
        """The problem of the database for operators: `behind: …`, `ahead: …`, `down: …`, or ""."""
        self._target = target
        self._database = database
        self._clock = clock
        # Names of the guarded blueprints. The set does not change after the first request.
        self._guarded: set[str] = set()
        # A thread holds the lock while it reads the revisions or upgrades the database. The lock
        # protects the attributes from `_may_upgrade` to `_observed_engine`.
        self._lock = threading.Lock()
        self._may_upgrade = is_default
        self._next_check = 0.0
        self._upgrade_failure = ""
        self._was_at_head = False
        self._observed_engine: Engine | None = None

    def install(self, app: Flask) -> None:
        """Add hooks to an app. Call this method before other code adds request hooks."""
        app.extensions[_EXTENSION] = self
        app.before_request(self.check_request)
        app.after_request(self.replace_error)  # the first `after_request` hook runs last

    def protect(self, endpoint: str, blueprint: Blueprint) -> None:
        """Guard requests to a blueprint if its endpoint has tables."""
        if any(branch.endpoint == endpoint for branch in self._target.branches):
            self._guarded.add(blueprint.name)

    def check_request(self) -> Response | None:
        """Answer the current request with 503 while the database is behind.

        Raises:
            DatabaseDownError: the database does not respond.
        """
        # Flask answers OPTIONS requests, so no code queries a table.
        if self.is_open or request.method == "OPTIONS" or not self._is_guarded():
            return None
        return None if self.check() else _response(DATABASE_BEHIND)

    def replace_error(self, response: Response) -> Response:
        """Replace a 500 response with 503 if outdated tables or a timeout are the reason."""
        is_error = response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR
        if is_error and g.pop(_HAS_TIMED_OUT, False):
            return _response(DATABASE_TOO_SLOW)
        if not is_error or not g.pop(_HAS_MISSED, False) or not self._is_guarded():
            return response
        # `check` needs a connection, but the session may hold the only free connection.
        db.session.close()
        if not self.is_open:
            # If the database is down, the response is 503 anyway.
            with suppress(DatabaseDownError):
                self.check()
        return _response(DATABASE_BEHIND) if self.problem else response

    def _is_guarded(self) -> bool:
        return not self._guarded.isdisjoint(request.blueprints)

    def check(self) -> bool:
        """Read the revisions if a check is due, and return whether the guard is open.

        Unless `forbid_upgrade` was called, the first check of a default database upgrades it.

        Raises:
            DatabaseDownError: the database does not respond.
        """
        is_due = not self.problem or self._clock() >= self._next_check
        wait_s = 0.0 if self.problem else UPGRADE_WAIT_S
        # Another request that holds the lock is already checking the database.
        if is_due and self._lock.acquire(timeout=wait_s):
            try:
                if not self.is_open and self._clock() >= self._next_check:
                    self._check()
            finally:
                self._lock.release()
        return self.is_open

    def _check(self) -> None:
        status = self._read_status()
        self._next_check = self._clock() + RECHECK_S
        if status.state == "behind" and self._may_upgrade and not self._is_downgraded():
            self._upgrade()
            return
        self._may_upgrade = False  # the guard must not undo a later downgrade
        self.is_open = status.state != "behind"
        if self.is_open:
            self._upgrade_failure = ""
            self._was_at_head = True
        problem = self._describe(status)
        if problem and problem != self.problem:
            extra = {"tenant": self._target.tenant, "reason": problem}
            _logger.warning("database.mismatch_found", extra=extra)
        self.problem = problem

    def _read_status(self) -> RevisionStatus:
        engine = self._observe_engine()
        try:
            if engine.dialect.name == "sqlite" and not sqlite_file_exists(engine.url):
                # Opening a connection would create an empty file.
                check_file_not_lost(engine.url)
                if not is_in_memory(engine.url):
                    return compare(self._target.branches, ())
            with engine.connect() as connection:
                return compare(self._target.branches, read_versions_on(connection))
        except HTTPException as error:
            self.problem = self._describe_down(error.__cause__ or error)
            raise
        except Exception as error:
            self.problem = self._describe_down(error)
            raise DatabaseDownError(RECHECK_S) from error

    def _describe_down(self, error: BaseException) -> str:
        if isinstance(error, TenantryError):  # the text of the error already says what to do
            return f"down: {describe_error(error)}."
        return (
            f"down: {describe_error(error)}; start the database, or correct 'DATABASE_URI'. Check "
            f"with: tenantry check {self._target.tenant}."
        )

    def _observe_engine(self) -> "Engine":
        """Return the engine of the app.

        The first call registers a handler for errors of the engine.
        """
        engine = self._database.engine
        if engine is not self._observed_engine:
            from sqlalchemy import event  # noqa: PLC0415 - already imported by the engine

            event.listen(engine, "handle_error", self._on_database_error)
            self._observed_engine = engine
        return engine

    def _on_database_error(self, context: "ExceptionContext") -> None:
        """Schedule a check if a statement failed because a table or a column is missing."""
        if context.statement == VERSIONS_QUERY:
            return
        error = context.original_exception
        if getattr(error, "sqlstate", None) == _CANCELED and has_app_context():
            setattr(g, _HAS_TIMED_OUT, True)
        if not is_missing_table_or_column(error):
            return
        if has_app_context():
            setattr(g, _HAS_MISSED, True)
        if not self.problem and self._clock() >= self._next_check:
            self.is_open = False

    def _describe(self, status: RevisionStatus) -> str:
        if status.state == "at head":
            return ""
        if status.state == "ahead":
            return f"ahead: {describe_unknown(status)}"
        if self._upgrade_failure:
            return f"behind: {self._upgrade_failure}"
        # A failure in the journal is outdated if the database has reached its head since the
        # failure.
        if not self._was_at_head and (failure := self._recorded_failure()):
            return f"behind: the last upgrade failed: {failure}"
        return (
            f"behind: the database is at {format_revisions(status.current)}, but the code needs "
            f"{format_revisions(status.heads)}; run: tenantry db upgrade --tenant "
            f"{self._target.tenant}."
        )

    def forbid_upgrade(self) -> None:
        """Prevent upgrades of the database, because a command only inspects the tenant."""
        with self._lock:
            self._may_upgrade = False

    def _is_downgraded(self) -> bool:
        """Whether an operator has downgraded the database from the revisions of this code."""
        data_dir = self._target.data_dir
        try:
            step = None if data_dir is None else last_step(self._target, data_dir)
        except TenantryError:  # the upgrade reports why the journal cannot be used
            return False
        return step is not None and step.state == "downgraded" and step.after == self._target.heads

    def _recorded_failure(self) -> str:
        """Return why the last upgrade of the database failed, or "" if the upgrade succeeded."""
        data_dir = self._target.data_dir
        try:
            step = None if data_dir is None else last_step(self._target, data_dir)
        except TenantryError as error:
            return str(error)
        is_same = step is not None and step.after == self._target.heads
        return step.reason if step is not None and is_same and step.state == "failed" else ""

    def _upgrade(self) -> None:
        """Upgrade a default database in a child process."""
        self._may_upgrade = False
        data_dir = self._target.data_dir
        if data_dir is None:
            return
        try:
            result = upgrade_for_host(self._target, data_dir)
            reason = result.reason
            self.is_open = result.state in ("upgraded", "at head")
        except TenantryError as error:  # the journal cannot be used
            reason = str(error)
        self._next_check = self._clock() + RECHECK_S
        self._upgrade_failure = reason
        self.problem = "" if self.is_open else f"behind: {reason}"
        extra = {"tenant": self._target.tenant, "reason": reason}
        if self.is_open:
            _logger.info("database.upgraded", extra=extra)
        else:
            _logger.error("database.upgrade_failed", extra=extra)


def _response(problem: ProblemResponse) -> Response:
    status, headers, body = problem.render(request.environ)
    return Response(body, status, headers)


def add_migration_guard(app: Flask, tenant: Tenant, data_dir: Path) -> MigrationGuard | None:
    """Add a guard to an app, without reading the database. An app without tables gets no guard.

    Raises:
        EndpointError: an endpoint does not exist, or its revisions cannot be read.
    """
    branches = read_branches(tenant.blueprints, tenant.app_dir)
    if not branches:
        return None
    url = tenant.database_uri.get_secret_value()
    guard = MigrationGuard(
        migration_target(tenant.name, url, branches, data_dir, tenant.database_options),
        database_of(app),
        is_default=url == default_database_url(data_dir, tenant.name),
    )
    guard.install(app)
    return guard


def upgrade_default_database(app: Flask) -> None:
    """Upgrade the default database of an app before the first request.

    If the upgrade fails, no exception is raised, and `database_problem` returns the reason.
    """
    guard: MigrationGuard | None = app.extensions.get(_EXTENSION)
    if guard is not None and guard.is_default:
        with suppress(DatabaseDownError):
            guard.check()


def forbid_upgrades(app: Flask) -> None:
    """Keep requests to an app from upgrading its default database."""
    guard: MigrationGuard | None = app.extensions.get(_EXTENSION)
    if guard is not None:
        guard.forbid_upgrade()


def database_problem(app: object) -> str:
    """Return the problem of an app's database for operators, or "" without a problem."""
    guard = app.extensions.get(_EXTENSION) if isinstance(app, Flask) else None
    return guard.problem if isinstance(guard, MigrationGuard) else ""
