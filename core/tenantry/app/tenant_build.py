"""The Flask objects of one build of a tenant.

The tenant's code creates Flask objects in its own way, such as `app = Flask(__name__)` in a module,
`APIFlask(…)` in a function, or an object of its own subclass of `Flask`. Each Flask object that is
created during the build becomes the tenant's: it has the tenant's configuration, instance folder,
sessions and database from the moment of its creation. To make this possible, this module wraps
`Flask.__init__` once in each process. The class of the object stays as the code has chosen it.
"""

import importlib.util
import inspect
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial, wraps
from pathlib import Path
from types import MethodType
from typing import Any

from flask import Flask, Request, Response
from flask.sessions import SecureCookieSessionInterface
from werkzeug.exceptions import Aborter
from werkzeug.routing import Rule

from tenantry.app.config import TenantConfig, config_class_of
from tenantry.app.extension_defaults import set_extension_defaults
from tenantry.app.flask_classes import (
    LazyAborter,
    OwnOriginSessions,
    TenantRequest,
    TenantResponse,
    TenantSessions,
    create_jinja_environment,
    raise_routing_exception,
)
from tenantry.app.lazy_rule import LazyRule
from tenantry.app.log_handlers import Added, host_log
from tenantry.database.session import Database, add_database, close_database
from tenantry.endpoints.loading import unload_endpoints
from tenantry.endpoints.plain_names import MODULES
from tenantry.errors import ApplicationError
from tenantry.private_code.modules import PrivateModules
from tenantry.private_code.names import owner_of, plain_name, private_name
from tenantry.tenants.model import Tenant

_EXTENSION = "tenantry.apps"
"""Key in `app.extensions` of the `TenantApps`."""

_current: ContextVar["TenantBuild | None"] = ContextVar("tenant_build", default=None)

_logger = logging.getLogger(__name__)


class TenantApps:
    """The Flask objects of one build, and what they have in common. `close` frees it all.

    Args:
        owner: the tenant's name.
        database: the tenant's database.
        modules: the tenant's private modules.
    """

    def __init__(self, owner: str, database: Database, modules: PrivateModules) -> None:
        self.owner = owner
        self.database = database
        self.modules = modules
        self.log_handlers: list[Added] = []
        """Log handlers that the tenant's code added. `close` removes them, because the tenant's
        next app uses the same loggers."""
        self._apps: list[Flask] = []

    def add(self, app: Flask) -> None:
        """Add a new Flask object, which gets the tenant's database."""
        self._apps.append(app)
        app.extensions[_EXTENSION] = self
        app.extensions[MODULES] = self.modules
        add_database(app, self.database)
        app.shell_context_processor(self._shell_context)

    def end_setup(self) -> None:
        """Undo what is meant only for code that runs while the apps are created."""
        for app in self._apps:
            vars(app).pop("run", None)

    def close(self) -> None:
        """Free the apps, their modules, their database and their log handlers. Idempotent."""
        unload_endpoints(self.modules)
        self.database.close()
        for app in self._apps:
            app.extensions.pop(_EXTENSION, None)
            app.extensions.pop(MODULES, None)
            close_database(app)
        self._apps.clear()
        added, self.log_handlers = self.log_handlers, []
        host_log.release(self.owner, added)

    def _shell_context(self) -> dict[str, Any]:
        """Let code in `flask shell` import the tenant's private modules."""
        return {"__builtins__": self.modules.builtins}


class TenantBuild:
    """Makes Flask objects the tenant's, as they are created. Used only during a build.

    Args:
        tenant: the tenant that is built.
        folder: the tenant's data folder, which becomes the instance folder.
        apps: receives the Flask objects.
    """

    def __init__(self, tenant: Tenant, folder: Path, apps: TenantApps) -> None:
        self.tenant = tenant
        self.folder = folder
        self.apps = apps

    @contextmanager
    def adopting(self) -> Iterator[None]:
        """Make each Flask object that is created during the `with` block the tenant's."""
        _wrap_flask()
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)
            self.apps.end_setup()

    def configure(self, config: TenantConfig) -> TenantConfig:
        """Set Tenantry's defaults and the tenant's keys in a configuration, and return it."""
        tenant = self.tenant
        config["DEBUG"] = False  # otherwise, FLASK_DEBUG turns on debugging for all tenants
        config["APPLICATION_ROOT"] = tenant.url_prefix
        config["SESSION_COOKIE_NAME"] = f"session_{tenant.name}"
        config["SESSION_COOKIE_SAMESITE"] = "Lax"
        set_extension_defaults(config, tenant, self.folder, self.apps.database)
        config.update(tenant.config())
        config.hidden = tenant.keys_with_secrets
        if tenant.app is not None:
            config.pinned = frozenset({*tenant.keys_set, "SQLALCHEMY_DATABASE_URI"})
        return config

    def prepare(self, app: Flask, arguments: dict[str, Any]) -> None:
        """Change the arguments of `Flask(…)`, and the classes that the code has not chosen."""
        arguments["instance_path"] = str(self.folder)
        self._locate(arguments)
        app.config_class = config_class_of(app.config_class)
        if app.aborter_class is Aborter:
            app.aborter_class = LazyAborter
        if app.request_class is Request and self.tenant.trusted_hosts is not None:
            app.request_class = TenantRequest
        if app.response_class is Response:
            app.response_class = TenantResponse
        if app.url_rule_class is Rule:
            app.url_rule_class = LazyRule
        if type(app.session_interface) is SecureCookieSessionInterface:
            sessions = OwnOriginSessions if self.tenant.has_own_origin else TenantSessions
            app.session_interface = sessions(self.tenant.name)

    def equip(self, app: Flask) -> None:
        """Give a new Flask object the tenant's configuration and database.

        Raises:
            ApplicationError: the class of the object makes its configuration in another way.
        """
        if not isinstance(app.config, TenantConfig):
            raise ApplicationError(
                f"{type(app).__name__}.make_config returns an object that is not made by "
                "self.config_class; return super().make_config(instance_relative)"
            )
        self.configure(app.config)
        self.apps.add(app)
        app.create_jinja_environment = MethodType(create_jinja_environment, app)  # type: ignore[method-assign]
        app.raise_routing_exception = MethodType(raise_routing_exception, app)  # type: ignore[method-assign]
        app.run = partial(_ignore_run, self.tenant.name)  # type: ignore[method-assign]

    def _locate(self, arguments: dict[str, Any]) -> None:
        """Let an import name mean the private module, or `APP_DIR` if there is no such module.

        The import name is also the name of the app's logger, so tenants do not share it.
        """
        plain = plain_name(arguments["import_name"])
        if plain == own_import_name(self.tenant):
            return
        modules = self.apps.modules
        is_private = modules.is_private(plain)
        if is_private or plain == "__main__" or not _is_library(plain):
            arguments["import_name"] = private_name(plain, modules.owner)
            if not is_private and arguments.get("root_path") is None:
                arguments["root_path"] = self.tenant.app_dir


def apps_of(app: Flask) -> TenantApps | None:
    """Return the group that an app belongs to, or None if it is closed or no tenant's app."""
    return app.extensions.get(_EXTENSION)


def own_import_name(tenant: Tenant) -> str:
    """Return the import name of the app of a tenant without `APP`."""
    return f"tenant.{tenant.name}"  # Flask names the app's logger after the app


@cache
def _wrap_flask() -> None:
    """Let each `Flask(…)` ask the current build, once in each process."""
    init = Flask.__init__
    signature = inspect.signature(init)

    @wraps(init)
    def init_for_tenant(self: Flask, *args: Any, **kwargs: Any) -> None:
        build = _current.get()
        call = signature.bind(self, *args, **kwargs)
        if build is None or owner_of(call.arguments["import_name"]) not in ("", build.tenant.name):
            init(self, *args, **kwargs)  # no build, or a module that several tenants share
            return
        build.prepare(self, call.arguments)
        init(*call.args, **call.kwargs)
        build.equip(self)

    Flask.__init__ = init_for_tenant  # type: ignore[method-assign]


def _is_library(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a parent is missing, or the name is not a module's name
        return False


def _ignore_run(tenant: str, *_: object, **__: object) -> None:
    """Ignore a call of `app.run()` while the app is imported, as Flask's own command does."""
    reason = "the host serves the app; put app.run() under: if __name__ == '__main__'"
    _logger.warning("app.run_ignored", extra={"tenant": tenant, "reason": reason})
