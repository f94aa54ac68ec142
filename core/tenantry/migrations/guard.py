"""Keeps requests from tables that are not what the code expects, one app at a time.

An endpoint with tables asks its app's gate before each request: 503 while the database is behind
the code. Once it is not, no request costs a query, until a statement misses a table or a column:
then it is looked at again. The default database is brought to head here, when its app is built;
any other one only by `tenantry db`. What
is done here is in no journal: that one tells what an operator's runs did, for `db downgrade` to
take back; what a build does, the next build would only do again.
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
from tenantry.database.url import default_database_url
from tenantry.http.problem import ProblemResponse
from tenantry.migrations.children import Nursery
from tenantry.migrations.revisions import (
    QUERY,
    Standing,
    ahead,
    compare,
    is_amiss,
    look_through,
    one_line,
    read_branches,
    shown,
)
from tenantry.migrations.runner import MigrationRunner, Target, target_of
from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine import ExceptionContext

LOOK_AGAIN_S = 1.0
"""A database that is behind, or is said to be, is looked at this often: an upgrade takes effect
without a restart, and an endpoint with a bug does not cost a query per request."""

MIGRATION_PATIENCE_S = 5.0
"""How long a request waits while another one has the default database brought to head."""

BEHIND = ProblemResponse(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The database of this application is being brought up to date; try again later.",
    retry_after_s=5,
)

_EXTENSION = "tenantry.gate"
_AMISS = "tenantry.gate.amiss"  # in the app context of a request that missed a table or a column
_logger = logging.getLogger(__name__)


class MigrationGuard:
    """Whether an app's database is at the head of its code. Thread-safe; lives with its app.

    Args:
        target: the database, and what the code wants of it.
        database: how the app reaches it.
        is_embedded: whether it is the tenant's default one, which is brought to head here.
        clock: seconds.
    """

    def __init__(
        self,
        target: Target,
        database: Database,
        *,
        is_embedded: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = target
        self._database = database
        self.is_embedded = is_embedded
        self._is_to_migrate = is_embedded
        self._clock = clock
        # One looks at a time; protects all that is written below. It knows whose it is: see `look`.
        self._lock = threading.RLock()
        self._look_again_at = 0.0
        self._failure = ""  # why the default database could not be brought to head
        self._engine: Engine | None = None  # the one whose errors are heard
        self.is_open = False
        """Closed without the lock, too: whoever looks meanwhile may open it once more, until the
        next statement misses something."""
        self.told = ""
        """What operators should know: `behind: …`, `ahead: …` or `down: …`; empty if nothing."""

    def guard(self, endpoint: str, blueprint: Blueprint) -> None:
        """Be asked before each request to an endpoint, and before all its own, if it has tables."""
        if any(branch.endpoint == endpoint for branch in self._target.branches):
            blueprint.before_request_funcs.setdefault(None, []).insert(0, self.check)
            blueprint.after_request_funcs.setdefault(None, []).insert(0, self.explain)  # runs last

    def check(self) -> Response | None:
        """Answer the current request with 503 while the database is behind; let others pass.

        Raises:
            DatabaseDownError: the database does not answer.
        """
        if self.is_open or request.method == "OPTIONS":  # which Flask answers, without tables
            return None
        self.look()
        if self.is_open:
            return None
        return _behind()

    def explain(self, response: Response) -> Response:
        """Answer 503 instead of 500 where tables that are not the code's are the reason."""
        is_failed = response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR
        if not is_failed or not g.pop(_AMISS, False):
            return response
        db.session.close()  # its connection may be the only one that there is
        if not self.is_open:
            with suppress(DatabaseDownError):
                self.look()
        return _behind() if self.told else response

    def look(self) -> None:
        """Look at the database, if it is time to; the default one is brought to head, once.

        Raises:
            DatabaseDownError: it does not answer.
        """
        if self.told and self._clock() < self._look_again_at:
            return
        patience_s = 0.0 if self.told else MIGRATION_PATIENCE_S
        try:
            is_mine = self._lock.acquire(timeout=patience_s)  # else somebody is looking
            if is_mine and not self.is_open and self._clock() >= self._look_again_at:
                self._look_now()
        finally:
            # An exception from outside (interrupts) may come between the lock and its name.
            with suppress(RuntimeError):  # it is not this thread's
                self._lock.release()

    def _look_now(self) -> None:
        try:
            found = compare(self._target.branches, look_through(self._heard()))
        except HTTPException as error:
            self.told = f"down: {one_line(error.__cause__ or error)}."
            raise
        except Exception as error:
            self.told = f"down: {one_line(error)}."
            raise DatabaseDownError(LOOK_AGAIN_S) from error
        self._look_again_at = self._clock() + LOOK_AGAIN_S
        if found.state == "behind" and self._is_to_migrate:
            self._migrate()
            return
        self._is_to_migrate = False  # who takes it back later has a reason
        self.is_open = found.state != "behind"
        self._failure = "" if self.is_open else self._failure
        was_told, self.told = self.told, self._text(found)
        if self.told != was_told and found.state != "at head":
            extra = {"tenant": self._target.tenant, "reason": self.told}
            _logger.warning("database.not_at_head", extra=extra)

    def _heard(self) -> "Engine":
        """Return the engine, whose errors are heard from the first look on."""
        engine = self._database.engine
        if engine is not self._engine:
            from sqlalchemy import event  # noqa: PLC0415 - an engine is there: it is loaded

            event.listen(engine, "handle_error", self._doubt)
            self._engine = engine
        return engine

    def _doubt(self, context: "ExceptionContext") -> None:
        """Have the database looked at again: a statement found no such table or column."""
        if context.statement == QUERY or not is_amiss(context.original_exception):
            return
        if has_app_context():
            setattr(g, _AMISS, True)
        if not self.told and self._clock() >= self._look_again_at:
            self.is_open = False

    def _text(self, found: Standing) -> str:
        if found.state == "behind":
            at, wanted = shown(found.current), shown(found.heads)
            remedy = f"run: tenantry db upgrade --tenant {self._target.tenant}."
            return f"behind: {self._failure or f'it is at {at}, the code wants {wanted}; {remedy}'}"
        return f"ahead: {ahead(found)}" if found.state == "ahead" else ""

    def _migrate(self) -> None:
        """Bring the default database to head, in a process of its own; tried once per build."""
        self._is_to_migrate = False
        with Nursery() as nursery, MigrationRunner(nursery) as migrator:
            result = migrator.upgrade(self._target, lambda _: None)
        self._look_again_at = self._clock() + LOOK_AGAIN_S
        self.is_open, self._failure = result.state in ("done", "was there"), result.reason
        self.told = "" if self.is_open else f"behind: {result.reason}"
        event = "database.upgraded" if self.is_open else "database.upgrade_failed"
        level = logging.INFO if self.is_open else logging.ERROR
        extra = {"tenant": self._target.tenant, "reason": result.reason}
        _logger.log(level, event, extra=extra)


def _behind() -> Response:
    body = BEHIND.body(request.environ)
    status, headers = BEHIND.head(len(body))
    return Response(body, status, headers)


def guard_migrations(app: Flask, tenant: Tenant, data_dir: Path) -> MigrationGuard | None:
    """Give an app its gate, looked through by nobody yet; None if it has no tables.

    Raises:
        EndpointError: an endpoint does not exist, or its revisions cannot be read.
    """
    branches = read_branches(tenant.blueprints)
    if not branches:
        return None
    text = tenant.database_uri.get_secret_value()
    default = default_database_url(data_dir, tenant.name)
    target = target_of(tenant.name, text, branches, data_dir)
    gate = MigrationGuard(target, database_of(app), is_embedded=text == default)
    app.extensions[_EXTENSION] = gate
    return gate


def bring_to_head(app: Flask) -> None:
    """Bring an app's default database to head before its first request, if it has tables there.

    Raises nothing: what prevents it, the gate tells.
    """
    gate: MigrationGuard | None = app.extensions.get(_EXTENSION)
    if gate is not None and gate.is_embedded:
        with suppress(DatabaseDownError):
            gate.look()


def told_of(app: object) -> str:
    """Return what operators should know of an app's database; empty if nothing."""
    gate = app.extensions.get(_EXTENSION) if isinstance(app, Flask) else None
    return gate.told if isinstance(gate, MigrationGuard) else ""
