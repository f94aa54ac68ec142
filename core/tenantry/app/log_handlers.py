"""Protects the logging set-up of the process while endpoints are set up.

`logging.config.dictConfig`, used as in Flask's documentation, removes the host's handler from the
root logger and disables all existing loggers, so the host and all tenants would log nothing. After
the set-up of an endpoint, the host restores every logger outside the tenant's own loggers
(`tenant.NAME` and `tenant.NAME.…`) and logs a warning with the name of the endpoint. The host does
not undo a change that an endpoint makes later, in a request.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flask.logging import default_handler

Added = tuple[logging.Logger, logging.Handler]
"""A logger, and a handler that an endpoint added to the logger."""

_ALL_TENANTS = "tenant"
"""Name of the parent of all tenants' loggers. A handler of the parent logger would get the lines of
every tenant."""

_REMEDY = (
    "the process's log belongs to the host: let the endpoint configure current_app.logger only, "
    "and give dictConfig 'disable_existing_loggers': False and no 'root'"
)

_logger = logging.getLogger(__name__)


class HostLog:
    """The logging set-up of the host before endpoints are set up. Thread-safe.

    Concurrent builds all restore the state from before the first of the concurrent builds, so no
    build records a change of another tenant as the state of the host.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects all attributes, and each restore
        self._watches: list[LogWatch] = []
        self._state: _State | None = None  # None while no build is watched
        self._owners: dict[logging.Handler, list[str]] = {}

    @contextmanager
    def watching(self, tenant: str, added: list[Added]) -> Iterator["LogWatch"]:
        """Watch the set-up of one tenant's endpoints, and restore the host's log at the end.

        Args:
            tenant: the name of the tenant.
            added: receives the handlers that the endpoints add, for `release`.
        """
        with self._lock:
            configured = _configured()
            watch = LogWatch(self, tenant, added, configured)
            self._state = self._state or _State(configured)
            self._watches.append(watch)
        try:
            yield watch
        finally:
            watch.end()
            with self._lock:
                self._watches.remove(watch)
                if not self._watches:
                    self._state = None

    def restore(self, watch: "LogWatch") -> None:
        """Restore the loggers outside the tenant, record added handlers, and log a warning."""
        with self._lock:
            changed = set() if self._state is None else {*self._restore(self._state, watch)}
            others = [str(one) for one in self._watches if one is not watch]
        if changed:
            facts: dict[str, Any] = {"tenant": watch.tenant, "endpoint": watch.endpoint}
            facts |= {"or_one_of": others} if others else {}
            facts |= {"changed": sorted(changed), "remedy": _REMEDY}
            _logger.warning("log.restored", extra=facts)

    def _restore(self, state: "_State", watch: "LogWatch") -> Iterator[str]:
        def is_own(handler: logging.Handler) -> bool:
            return {watch.tenant} == {*self._owners.get(handler, ())}

        changed = [*state.restore_process(), *state.restore_loggers(is_own)]
        own = []
        for logger in _configured():
            owner = _owner(logger.name)
            if logger.disabled and logger not in state.disabled:
                if owner == watch.tenant:
                    own.append(logger)
                else:
                    logger.disabled = False
                    changed.append("disabled loggers")
            # The endpoint's package removes the handlers of its logger.
            is_private = "@" in logger.name
            if owner in (None, watch.tenant) and not is_private:
                changed += self._note_added(logger, watch)
        if changed:
            for logger in own:  # disabled together with all other loggers, not on purpose
                logger.disabled = False
        else:
            state.disabled.update(own)
        yield from changed

    def _note_added(self, logger: logging.Logger, watch: "LogWatch") -> Iterator[str]:
        for handler in [one for one in logger.handlers if one not in watch.known]:
            if handler is not default_handler:  # Flask's own handler, which all apps share
                watch.known.add(handler)
                watch.added.append((logger, handler))
                self._owners.setdefault(handler, []).append(watch.tenant)
            if logger is logging.root or logger.name == _ALL_TENANTS:
                logger.removeHandler(handler)
                yield f"handlers of {logger.name}"

    def release(self, tenant: str, added: Sequence[Added]) -> None:
        """Remove and close the handlers that only the app of `tenant` added."""
        closed = []
        with self._lock:
            for logger, handler in added:
                owners = self._owners.get(handler, [])
                if tenant in owners:
                    owners.remove(tenant)
                if not owners:
                    self._owners.pop(handler, None)
                    if self._state is not None:
                        self._state.forget(logger, handler)
                    logger.removeHandler(handler)
                    closed.append(handler)
        for handler in closed:
            handler.close()


class LogWatch:
    """One build during the set-up of its endpoints. Only one thread uses a watch."""

    def __init__(
        self, log: HostLog, tenant: str, added: list[Added], configured: Iterable[logging.Logger]
    ) -> None:
        self._log = log
        self.tenant = tenant
        self.endpoint = ""
        """The endpoint that is being set up."""
        self.added = added
        self.known = {handler for one in configured for handler in one.handlers}
        """The handlers that existed before the build, or are in `added`."""

    def __str__(self) -> str:
        return f"{self.tenant}: {self.endpoint}"

    def begin(self, endpoint: str) -> None:
        """Undo the changes of the previous endpoint, and start to watch `endpoint`."""
        self.end()
        self.endpoint = endpoint

    def end(self) -> None:
        """Undo the endpoint's changes outside the tenant's loggers."""
        if self.endpoint:
            self._log.restore(self)


class _State:
    """The recorded state of the host's logging set-up."""

    def __init__(self, configured: Iterable[logging.Logger]) -> None:
        self._disable = logging.root.manager.disable
        self._handlers = [(one, _facts(one)) for one in logging.root.handlers]
        self._loggers = {one: _LoggerState(one) for one in _hosts()}
        self.disabled = {one for one in configured if one.disabled}

    def restore_process(self) -> Iterator[str]:
        """Restore the state that all loggers share; yield the name of each restored part."""
        if logging.root.manager.disable != self._disable:
            logging.disable(self._disable)
            yield "logging.disable"
        for handler, facts in self._handlers:
            if _facts(handler) != facts:
                handler.level, handler.formatter, filters = facts
                handler.filters[:] = filters
                yield "handlers of root"

    def restore_loggers(self, is_own: Callable[[logging.Handler], bool]) -> Iterator[str]:
        """Restore the loggers of the host and of libraries; yield the name of each restored part.

        Args:
            is_own: returns whether a handler belongs to the tenant, which may remove its own
                handler.
        """
        for logger, was in self._loggers.items():
            yield from was.restore(logger, is_own)

    def forget(self, logger: logging.Logger, handler: logging.Handler) -> None:
        """Forget a closed handler, so that `restore` does not add the closed handler again."""
        was = self._loggers.get(logger)
        if was is not None and handler in was.handlers:
            was.handlers.remove(handler)


class _LoggerState:
    """The recorded state of one logger."""

    __slots__ = ("_disabled", "_filters", "_level", "_propagate", "handlers")

    def __init__(self, logger: logging.Logger) -> None:
        self.handlers = logger.handlers[:]
        self._filters = logger.filters[:]
        self._level = logger.level
        self._disabled = logger.disabled
        self._propagate = logger.propagate

    def restore(
        self, logger: logging.Logger, is_own: Callable[[logging.Handler], bool]
    ) -> Iterator[str]:
        """Restore the logger; yield the name of each restored part."""
        there = logger.handlers
        wanted = [one for one in self.handlers if one in there or not is_own(one)]
        if any(one not in there for one in wanted):
            logger.handlers = [*wanted, *(one for one in there if one not in wanted)]
            yield f"handlers of {logger.name}"
        if logger.filters != self._filters:
            logger.filters = self._filters[:]
            yield f"filters of {logger.name}"
        if logger.level != self._level:
            logger.setLevel(self._level)
            yield f"level of {logger.name}"
        if logger.propagate != self._propagate:
            logger.propagate = self._propagate
            yield f"propagation of {logger.name}"
        if logger.disabled != self._disabled:
            logger.disabled = self._disabled
            yield "disabled loggers"


def _facts(handler: logging.Handler) -> tuple[int, logging.Formatter | None, list[Any]]:
    return handler.level, handler.formatter, handler.filters[:]


def _configured() -> list[logging.Logger]:
    """Return the loggers that are disabled or have handlers."""
    return [
        one
        for one in (logging.root, *logging.root.manager.loggerDict.values())
        if not isinstance(one, logging.PlaceHolder) and (one.handlers or one.disabled)
    ]


def _hosts() -> list[logging.Logger]:
    """Return the loggers that belong to no tenant."""
    logging.getLogger(_ALL_TENANTS)  # creates the parent logger if necessary
    found = [
        one
        for name, one in list(logging.root.manager.loggerDict.items())
        if "@" not in name and not name.startswith("tenant.")
    ]
    return [logging.root, *(one for one in found if isinstance(one, logging.Logger))]


def _owner(name: str) -> str | None:
    """Return the tenant that a logger belongs to; None for the host and libraries."""
    if "@" in name:  # an endpoint's private package, like `shop@acme-1.resources`
        return name.partition(".")[0].partition("@")[2].rpartition("-")[0]
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] if rest and first == _ALL_TENANTS else None


host_log = HostLog()
"""The host's logging set-up, shared by the whole process like the module `logging`."""
