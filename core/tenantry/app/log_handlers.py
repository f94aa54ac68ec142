"""The process's log stays the host's, whatever an endpoint does to it while it is set up.

`logging.config.dictConfig`, used as Flask's documentation has it, takes the host's handler off the
root logger and disables every logger that there is: host and tenants would be silent. So all that
is not the tenant's own (`tenant.NAME` and below) is put back as it was, and one warning says which
endpoint it was. What runs later, in requests, is not watched.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flask.logging import default_handler

Added = tuple[logging.Logger, logging.Handler]
"""A handler, and the logger that it was added to."""

_ALL_TENANTS = "tenant"
"""The logger above those of all tenants: its handlers would hear each of them."""

_REMEDY = (
    "the process's log is the host's: let the endpoint set up current_app.logger only, and give "
    "dictConfig 'disable_existing_loggers': False and no 'root'"
)

_logger = logging.getLogger(__name__)


class HostLog:
    """What the host's part of the log was before endpoints were set up. Thread-safe.

    Builds may run at once. All go by the state from before the first of them, so that none takes
    for the host's what a neighbour has just done.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects all below, and every restoring
        self._watches: list[LogWatch] = []
        self._state: _State | None = None  # while there are watches
        self._owners: dict[logging.Handler, list[str]] = {}

    @contextmanager
    def watching(self, tenant: str, added: list[Added]) -> Iterator["LogWatch"]:
        """Watch over the set-up of one tenant's endpoints; at its end all is as it was.

        Args:
            tenant: its name.
            added: gets the handlers that the endpoints add, for `release`.
        """
        with self._lock:
            unusual = _unusual()
            watch = LogWatch(self, tenant, added, unusual)
            self._state = self._state or _State(unusual)
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
        """Put back what is not the tenant's, note the handlers that were added, and tell."""
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
        for logger in _unusual():
            owner = _owner(logger.name)
            if logger.disabled and logger not in state.disabled:
                if owner == watch.tenant:
                    own.append(logger)
                else:
                    logger.disabled = False
                    changed.append("disabled loggers")
            is_private = "@" in logger.name  # then its handlers go with its package
            if owner in (None, watch.tenant) and not is_private:
                changed += self._note_added(logger, watch)
        if changed:
            for logger in own:  # it was no choice then, but a sweep
                logger.disabled = False
        else:
            state.disabled.update(own)
        yield from changed

    def _note_added(self, logger: logging.Logger, watch: "LogWatch") -> Iterator[str]:
        for handler in [one for one in logger.handlers if one not in watch.known]:
            if handler is not default_handler:  # Flask's own, one for all apps
                watch.known.add(handler)
                watch.added.append((logger, handler))
                self._owners.setdefault(handler, []).append(watch.tenant)
            if logger is logging.root or logger.name == _ALL_TENANTS:
                logger.removeHandler(handler)
                yield f"handlers of {logger.name}"

    def release(self, tenant: str, added: Sequence[Added]) -> None:
        """Remove and close what a tenant's app has added; later, where a neighbour may have."""
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
    """One build, while its endpoints are set up. Used by one thread."""

    def __init__(
        self, log: HostLog, tenant: str, added: list[Added], unusual: Iterable[logging.Logger]
    ) -> None:
        self._log = log
        self.tenant = tenant
        self.endpoint = ""
        """The one that is being set up."""
        self.added = added
        self.known = {handler for one in unusual for handler in one.handlers}
        """The handlers that were there before, or are in `added`."""

    def __str__(self) -> str:
        return f"{self.tenant}: {self.endpoint}"

    def begin(self, endpoint: str) -> None:
        """Note which endpoint is set up from here on; what the one before has done is undone."""
        self.end()
        self.endpoint = endpoint

    def end(self) -> None:
        """Put back what the endpoint has changed and what is not its tenant's."""
        if self.endpoint:
            self._log.restore(self)


class _State:
    """How the host's part of the log was."""

    def __init__(self, unusual: Iterable[logging.Logger]) -> None:
        self._disable = logging.root.manager.disable
        self._handlers = [(one, _facts(one)) for one in logging.root.handlers]
        self._loggers = {one: _LoggerState(one) for one in _hosts()}
        self.disabled = {one for one in unusual if one.disabled}

    def restore_process(self) -> Iterator[str]:
        """Put back what concerns all loggers; yield what was changed."""
        if logging.root.manager.disable != self._disable:
            logging.disable(self._disable)
            yield "logging.disable"
        for handler, facts in self._handlers:
            if _facts(handler) != facts:
                handler.level, handler.formatter, filters = facts
                handler.filters[:] = filters
                yield "handlers of root"

    def restore_loggers(self, is_own: Callable[[logging.Handler], bool]) -> Iterator[str]:
        """Put back the host's loggers and those of libraries; yield what was changed.

        Args:
            is_own: whether a handler is the tenant's, which may remove it.
        """
        for logger, was in self._loggers.items():
            yield from was.restore(logger, is_own)

    def forget(self, logger: logging.Logger, handler: logging.Handler) -> None:
        """Never put back a handler: it is closed."""
        was = self._loggers.get(logger)
        if was is not None and handler in was.handlers:
            was.handlers.remove(handler)


class _LoggerState:
    """How one logger was."""

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
        """Put it back; yield what was changed."""
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


def _unusual() -> list[logging.Logger]:
    """Return the loggers that are disabled or have handlers: few of what may be thousands."""
    return [
        one
        for one in (logging.root, *logging.root.manager.loggerDict.values())
        if not isinstance(one, logging.PlaceHolder) and (one.handlers or one.disabled)
    ]


def _hosts() -> list[logging.Logger]:
    """Return the loggers that are no tenant's."""
    logging.getLogger(_ALL_TENANTS)  # so that it is there
    found = [
        one
        for name, one in list(logging.root.manager.loggerDict.items())
        if "@" not in name and not name.startswith("tenant.")
    ]
    return [logging.root, *(one for one in found if isinstance(one, logging.Logger))]


def _owner(name: str) -> str | None:
    """Return the tenant whose own a logger is; None for the host's and the libraries'."""
    if "@" in name:  # an endpoint's private package, like `shop@acme-1.resources`
        return name.partition(".")[0].partition("@")[2].rpartition("-")[0]
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] if rest and first == _ALL_TENANTS else None


host_log = HostLog()
"""Process-wide, as `logging` is."""
