"""Protects the logging configuration of the process while endpoints are set up.

A call of `logging.config.dictConfig`, as in Flask's documentation, removes the host's handler from
the root logger and disables all existing loggers. The host and all tenants would no longer log
anything. After the setup of each endpoint, the host restores all loggers except the tenant's own
loggers (`tenant.NAME` and `tenant.NAME.…`). If an endpoint has changed one of these loggers, the
host logs a warning that names the endpoint. The host does not undo a change that an endpoint makes
later, during a request.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flask.logging import default_handler

from tenantry.private_code.names import tenant_of

Added = tuple[logging.Logger, logging.Handler]
"""A logger, and a handler that an endpoint added to it."""

_ALL_TENANTS = "tenant"
"""Name of the parent of all tenants' loggers.

A handler of this parent logger would receive the log records of every tenant.
"""

_REMEDY = (
    "the endpoint must not change the log of the process: configure only current_app.logger, "
    "and pass 'disable_existing_loggers': False and no 'root' to dictConfig"
)

_logger = logging.getLogger(__name__)


class HostLog:
    """The logging configuration of the host, without the changes of endpoints. Thread-safe.

    When several apps are built at the same time, each build restores the state from before the
    first build, because a later state may contain the changes of another tenant.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects all attributes; held while loggers are restored
        self._watches: list[LogWatch] = []
        self._state: _State | None = None  # the value is None while no build is watched
        self._owners: dict[logging.Handler, list[str]] = {}

    @contextmanager
    def watching(self, tenant: str, added: list[Added]) -> Iterator["LogWatch"]:
        """Watch the setup of one tenant's endpoints, and restore the host's loggers at the end.

        Args:
            tenant: the name of the tenant.
            added: a list to which the endpoints' log handlers are added. When the app is closed,
                pass this list to `release`.
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
        """Restore the loggers of the host, and log a warning if an endpoint changed them."""
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
            # Unloading an endpoint's package also removes the handlers of the package's logger.
            is_private = "@" in logger.name
            if owner in (None, watch.tenant) and not is_private:
                changed += self._note_added(logger, watch)
        if changed:
            for logger in own:  # the endpoint disabled all loggers, not only its own
                logger.disabled = False
        else:
            state.disabled.update(own)
        yield from changed

    def _note_added(self, logger: logging.Logger, watch: "LogWatch") -> Iterator[str]:
        for handler in [one for one in logger.handlers if one not in watch.known]:
            if handler is not default_handler:  # all Flask apps share Flask's default handler
                watch.known.add(handler)
                watch.added.append((logger, handler))
                self._owners.setdefault(handler, []).append(watch.tenant)
            if logger is logging.root or logger.name == _ALL_TENANTS:
                logger.removeHandler(handler)
                yield f"handlers of {logger.name}"

    def release(self, tenant: str, added: Sequence[Added]) -> None:
        """Remove and close the log handlers that no other tenant's app added."""
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
    """Watches the loggers while one app is built. Not thread-safe."""

    def __init__(
        self, log: HostLog, tenant: str, added: list[Added], configured: Iterable[logging.Logger]
    ) -> None:
        self._log = log
        self.tenant = tenant
        self.endpoint = ""
        """Name of the endpoint that is being set up."""
        self.added = added
        self.known = {handler for one in configured for handler in one.handlers}
        """The log handlers from before the build, and the handlers that endpoints added."""

    def __str__(self) -> str:
        return f"{self.tenant}: {self.endpoint}"

    def begin(self, endpoint: str) -> None:
        """Undo the previous endpoint's changes of loggers, and start to watch the next endpoint."""
        self.end()
        self.endpoint = endpoint

    def end(self) -> None:
        """Undo the endpoint's changes of loggers that do not belong to the tenant."""
        if self.endpoint:
            self._log.restore(self)


class _State:
    """A snapshot of the host's logging configuration."""

    def __init__(self, configured: Iterable[logging.Logger]) -> None:
        self._disable = logging.root.manager.disable
        self._handlers = [(one, _facts(one)) for one in logging.root.handlers]
        self._loggers = {one: _LoggerState(one) for one in _hosts()}
        self.disabled = {one for one in configured if one.disabled}

    def restore_process(self) -> Iterator[str]:
        """Restore the global logging settings, and yield the name of each restored setting."""
        if logging.root.manager.disable != self._disable:
            logging.disable(self._disable)
            yield "logging.disable"
        for handler, facts in self._handlers:
            if _facts(handler) != facts:
                handler.level, handler.formatter, filters = facts
                handler.filters[:] = filters
                yield "handlers of root"

    def restore_loggers(self, is_own: Callable[[logging.Handler], bool]) -> Iterator[str]:
        """Restore the loggers of the host and of libraries, and yield what was restored.

        Args:
            is_own: a function that returns whether a handler belongs to the tenant. A tenant may
                remove its own handlers.
        """
        for logger, was in self._loggers.items():
            yield from was.restore(logger, is_own)

    def forget(self, logger: logging.Logger, handler: logging.Handler) -> None:
        """Forget a closed log handler, so that no later restore adds it again."""
        was = self._loggers.get(logger)
        if was is not None and handler in was.handlers:
            was.handlers.remove(handler)


class _LoggerState:
    """A snapshot of one logger."""

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
        """Restore the logger, and yield the name of each restored setting."""
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
    logging.getLogger(_ALL_TENANTS)  # this call creates the parent logger if necessary
    found = [
        one
        for name, one in list(logging.root.manager.loggerDict.items())
        if "@" not in name and not name.startswith("tenant.")
    ]
    return [logging.root, *(one for one in found if isinstance(one, logging.Logger))]


def _owner(name: str) -> str | None:
    """Return the tenant that a logger belongs to, or None for the host and libraries."""
    if tenant := tenant_of(name):  # a tenant's copy of an endpoint, such as `shop@acme.resources`
        return tenant
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] if rest and first == _ALL_TENANTS else None


host_log = HostLog()
"""The host's logging configuration, which is global like the module `logging`."""
