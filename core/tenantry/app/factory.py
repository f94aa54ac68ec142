"""Builds the Flask app of a tenant."""

from pathlib import Path
from types import ModuleType

from flask import Flask

from tenantry.app.config_objects import tenant_of
from tenantry.app.flask_classes import TenantApp, TenantSessions
from tenantry.app.log_handlers import Added, host_log
from tenantry.database.budget import ConnectionBudget
from tenantry.database.session import NoteQuery, close_database, open_database
from tenantry.endpoints.loading import (
    LOADED_ENDPOINTS,
    load_endpoint,
    registration_errors,
    unload_endpoints,
)
from tenantry.endpoints.plain_names import MODULES, resolve_plain_names, using
from tenantry.endpoints.signal_receivers import confine_receivers
from tenantry.files.memory_budget import (
    DECODING_BYTES,
    DECODING_MEMORY,
    DECODING_WAIT_S,
    MemoryBudget,
)
from tenantry.library_locks import lock_library_functions
from tenantry.migrations.guard import MigrationGuard, add_migration_guard
from tenantry.observability.redaction import secret_scope
from tenantry.private_code.modules import PrivateModules
from tenantry.private_code.sources import Sources
from tenantry.settings import read_settings
from tenantry.tenants.model import Tenant


def create_app(
    config: Tenant | ModuleType | type | object,
    *,
    data_dir: Path | None = None,
    budget: ConnectionBudget | None = None,
    decoding_memory: MemoryBudget | None = None,
    note_query: NoteQuery | None = None,
    sources: Sources | None = None,
) -> Flask:
    """Build the Flask app of one tenant.

    Args:
        config: a `Tenant`, a module, a class (`class ConfigClass: APP_NAME = …`), a mapping, or any
            object with upper-case attributes. Unless `config` is a `Tenant`, it is validated like a
            tenant file, but may set `DEBUG` and `TESTING`. The app gets copies of the values.
        data_dir: the folder that contains the tenants' folders; `TENANTRY_DATA_DIR` if None.
        budget: limits the app's database connections. The default is a new budget of
            `TENANTRY_DB_CONNECTIONS` connections.
        decoding_memory: limits the memory that endpoints use to decode images. The default is a new
            budget of `DECODING_BYTES`.
        note_query: a function that receives the tenant's name and the duration in nanoseconds of
            each database query.
        sources: the compiled code of endpoints. By default, each build reads the files again.

    Returns:
        The app, in which the tenant's endpoints are registered. Call `close_app` when you no longer
        need the app.

    Raises:
        TenantFileError: `config` is invalid. The error lists every problem of the configuration.
        EndpointError: an endpoint does not exist, or its import or registration fails.
    """
    lock_library_functions()
    resolve_plain_names()
    confine_receivers()
    data_dir = (data_dir or read_settings().data_dir).absolute()
    tenant = config if isinstance(config, Tenant) else tenant_of(config, data_dir)
    app = _bare_app(tenant, data_dir / tenant.name)
    budget = budget or ConnectionBudget(read_settings().db_connections)
    open_database(
        app,
        tenant.name,
        tenant.database_uri,
        budget,
        note_query,
        options=tenant.database_options,
    )
    app.extensions[DECODING_MEMORY] = decoding_memory or MemoryBudget(
        DECODING_BYTES, DECODING_WAIT_S
    )
    app.extensions[LOADED_ENDPOINTS] = []
    modules = app.private_modules = PrivateModules(tenant.name, sources, app_dir=tenant.app_dir)
    app.extensions[MODULES] = modules
    added: list[Added] = []
    try:
        with (
            modules.building(),
            using(modules),
            secret_scope(app.config),
            host_log.watching(tenant.name, added) as watch,
        ):
            guard = add_migration_guard(app, tenant, data_dir)
            for name in tenant.blueprints:
                watch.begin(name)
                _add_endpoint(app, guard, name, modules)
    except BaseException:
        app.log_handlers = tuple(added)
        close_app(app)
        raise
    app.log_handlers = tuple(added)
    return app


def _add_endpoint(
    app: Flask, guard: MigrationGuard | None, name: str, modules: PrivateModules
) -> None:
    endpoint = load_endpoint(name, modules)
    app.extensions[LOADED_ENDPOINTS].append(endpoint)
    if guard is not None:
        guard.protect(name, endpoint.blueprint)
    with registration_errors(name):
        app.register_blueprint(endpoint.blueprint)


def close_app(app: Flask) -> None:
    """Free the resources of an app that serves no more requests. Idempotent."""
    app.extensions.pop(LOADED_ENDPOINTS, None)
    if isinstance(app, TenantApp) and app.private_modules is not None:
        unload_endpoints(app.private_modules)
    close_database(app)
    if isinstance(app, TenantApp):
        added, app.log_handlers = app.log_handlers, ()
        host_log.release(app.name.removeprefix("tenant."), added)


def _bare_app(tenant: Tenant, folder: Path) -> TenantApp:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # SQLite creates no folder
    app = TenantApp(
        f"tenant.{tenant.name}",  # Flask names the app's logger after the app
        root_path=str(folder),
        instance_path=str(folder),
        static_folder="static" if (folder / "static").is_dir() else None,
    )
    app.config["DEBUG"] = False  # otherwise, FLASK_DEBUG turns on debugging for all tenants
    app.config["APPLICATION_ROOT"] = tenant.url_prefix
    app.config["SESSION_COOKIE_NAME"] = f"session_{tenant.name}"
    app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    app.config.update(tenant.config())
    app.config.hidden = tenant.keys_with_secrets
    app.session_interface = TenantSessions(tenant.name)
    return app
