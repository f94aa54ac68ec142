"""Gives each tenant its own part of the global state of Celery, marshmallow and SQLAlchemy.

Celery and marshmallow keep tasks, apps and schema classes in module-level objects. With plain
objects, `@shared_task` of one tenant would send jobs to the broker of another tenant, and the
schema classes of two tenants would have the same name. This module replaces these objects once in
each process, as soon as a tenant's code has imported the library. In SQLAlchemy, it only adds the
look-up of plain paths (`mapped_classes`).
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator, MutableSet
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from tenantry.endpoints.mapped_classes import resolve_plain_paths
from tenantry.endpoints.plain_names import current_modules, using
from tenantry.private_code.modules import PrivateModules, build_defining
from tenantry.private_code.names import private_name, tenant_of

if TYPE_CHECKING:
    from celery import Celery

_LOCK = threading.Lock()
"""Held while a library is adapted, so that each library is adapted once."""

_BUILD = "tenantry_build"
"""The attribute of a Celery app that holds the private modules of its tenant."""


_logger = logging.getLogger(__name__)


def adapt_libraries() -> None:
    """Adapt the libraries that are imported by now, once in each process."""
    for name in ("celery", "marshmallow", "sqlalchemy.orm"):
        if name in sys.modules:
            _adapt(name)


@cache
def _adapt(name: str) -> None:
    adapters: dict[str, Callable[[], object]] = {
        "celery": _adapt_celery,
        "marshmallow": _adapt_marshmallow,
        "sqlalchemy.orm": resolve_plain_paths,
    }
    try:
        with _LOCK:
            adapters[name]()
    except (AttributeError, ImportError) as error:
        # This version of the library has other objects. The audit finds what tenants share.
        _logger.warning("library.not_separated", extra={"reason": f"{name}: {error}"})


# -- marshmallow --------------------------------------------------------------------------------


class SchemaRegistry(dict[str, list[Any]]):
    """Schema classes by name: the dict has those of libraries, and each tenant has its own."""

    def __contains__(self, name: object) -> bool:
        own = _own_schemas()
        return super().__contains__(name) if own is None else name in own

    def __getitem__(self, name: str) -> list[Any]:
        modules, own = current_modules(), _own_schemas()
        if modules is not None and own is not None:
            for key in (name, private_name(name, modules.owner)):
                if key in own:
                    return own[key]
        return super().__getitem__(name)

    def __setitem__(self, name: str, classes: list[Any]) -> None:
        own = _own_schemas() if tenant_of(classes[0].__module__) else None
        if own is None:
            super().__setitem__(name, classes)
        else:
            own[name] = classes

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Return the classes of a name, which is the complete path of a class."""
        own = _own_schemas() if tenant_of(name) else None
        return super().setdefault(name, default) if own is None else own.setdefault(name, default)


def _own_schemas() -> dict[str, list[Any]] | None:
    modules = current_modules()
    return None if modules is None else modules.library_state.setdefault("marshmallow", {})


def _adapt_marshmallow() -> None:
    from marshmallow import class_registry  # noqa: PLC0415 - only if a tenant uses the library

    registry = class_registry._registry  # noqa: SLF001
    if type(registry) is dict:
        class_registry._registry = SchemaRegistry(registry)  # noqa: SLF001


# -- Celery -------------------------------------------------------------------------------------


class CurrentCeleryApp:
    """The current Celery app of each tenant, and of each thread outside of all tenants."""

    def __init__(self, local: Any) -> None:
        self._local = local

    @property
    def current_app(self) -> "Celery | None":
        """The app that was created last, or made current last."""
        modules = current_modules()
        own = None if modules is None else modules.library_state.get("celery.current_app")
        return own or self._local.current_app

    @current_app.setter
    def current_app(self, app: "Celery | None") -> None:
        modules = current_modules()
        if modules is None:
            self._local.current_app = app
        else:
            modules.library_state["celery.current_app"] = app


class CelerySet:
    """A set of Celery's in which a tenant finds its own items and those of libraries.

    Args:
        common: the items of libraries.
        owner: a function that returns the build to which an item belongs.
    """

    def __init__(
        self, common: MutableSet[Any], owner: Callable[[Any], PrivateModules | None]
    ) -> None:
        self._common = common
        self._owner = owner

    def add(self, item: Any) -> None:
        """Add an item for its owner."""
        self._items(self._owner(item)).add(item)

    def discard(self, item: Any) -> None:
        """Remove an item, if the set contains it."""
        self._items(self._owner(item)).discard(item)

    def __iter__(self) -> Iterator[Any]:
        items = list(self._common)
        modules = current_modules()
        return iter(items if modules is None else [*items, *self._items(modules)])

    def _items(self, modules: PrivateModules | None) -> MutableSet[Any]:
        if modules is None:
            return self._common
        key = f"celery.{type(self._common).__name__}"
        items: MutableSet[Any] = modules.library_state.setdefault(key, type(self._common)())
        return items


def _adapt_celery() -> None:
    from celery import Celery, _state  # noqa: PLC0415 - only if a tenant uses the library
    from celery.loaders.base import BaseLoader  # noqa: PLC0415 - as above

    if isinstance(_state._tls, CurrentCeleryApp):  # noqa: SLF001
        return
    _state._tls = CurrentCeleryApp(_state._tls)  # noqa: SLF001
    _state._apps = CelerySet(_state._apps, _build_of_celery)  # noqa: SLF001
    _state._on_app_finalizers = CelerySet(_state._on_app_finalizers, _build_of_callback)  # noqa: SLF001
    Celery.set_default = _only_current(Celery.set_default)
    Celery.finalize = _with_names_of(lambda app: app, Celery.finalize)
    BaseLoader.import_default_modules = _with_names_of(
        lambda loader: loader.app, BaseLoader.import_default_modules
    )


def _build_of_celery(app: "Celery") -> PrivateModules | None:
    modules: PrivateModules | None = vars(app).setdefault(_BUILD, current_modules())
    return modules


def _build_of_callback(callback: Any) -> PrivateModules | None:
    """Return the build that defines a shared task, which is in the closure of the callback."""
    for cell in getattr(callback, "__closure__", None) or ():
        modules = build_defining(cell.cell_contents)
        if modules is not None and not modules.is_shared:
            return modules
    return None


def _only_current(set_default: Callable[["Celery"], None]) -> Callable[["Celery"], None]:
    """Make a tenant's app current for the tenant instead of for the whole process."""

    @wraps(set_default)
    def set_default_of_tenant(self: "Celery") -> None:
        if current_modules() is None:
            set_default(self)
        else:
            self.set_current()

    return set_default_of_tenant


def _with_names_of(app_of: Callable[[Any], Any], method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method find the modules and tasks of the tenant whose Celery app it works for."""

    @wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        with using(vars(app_of(self)).get(_BUILD) or current_modules()):
            return method(self, *args, **options)

    return call
