"""Builds the Flask app of a tenant."""

from pathlib import Path
from types import ModuleType

from flask import Flask

from tenantry.app.config import FactoryArgument, TenantConfig
from tenantry.app.config_objects import tenant_of
from tenantry.app.log_handlers import LogWatch, host_log
from tenantry.app.tenant_build import TenantApps, TenantBuild, apps_of, own_import_name
from tenantry.database.budget import ConnectionBudget
from tenantry.database.session import Database, NoteQuery
from tenantry.endpoints.app_loading import load_app
from tenantry.endpoints.app_reference import parse_app
from tenantry.endpoints.library_state import adapt_libraries
from tenantry.endpoints.loading import (
    LOADED_ENDPOINTS,
    load_endpoint,
    registration_errors,
)
from tenantry.endpoints.plain_names import resolve_plain_names, using
from tenantry.endpoints.signal_receivers import confine_receivers
from tenantry.errors import ApplicationError
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
        ApplicationError: `APP` gives no Flask app.
        EndpointError: an endpoint does not exist, or its import or registration fails.
    """
    lock_library_functions()
    resolve_plain_names()
    confine_receivers()
    data_dir = (data_dir or read_settings().data_dir).absolute()
    tenant = config if isinstance(config, Tenant) else tenant_of(config, data_dir)
    folder = data_dir / tenant.name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # SQLite creates no folder
    database = Database(
        tenant.name,
        tenant.database_uri,
        budget or ConnectionBudget(read_settings().db_connections),
        note_query,
        options=tenant.database_options,
    )
    modules = PrivateModules(tenant.name, sources, app_dir=tenant.app_dir)
    modules.after_import = adapt_libraries
    apps = TenantApps(tenant.name, database, modules)
    memory = decoding_memory or MemoryBudget(DECODING_BYTES, DECODING_WAIT_S)
    try:
        return _built(TenantBuild(tenant, folder, apps), data_dir, memory)
    except BaseException:
        apps.close()
        raise


def close_app(app: Flask) -> None:
    """Free the resources of an app that serves no more requests. Idempotent."""
    app.extensions.pop(LOADED_ENDPOINTS, None)
    apps = apps_of(app)
    if apps is not None:
        apps.close()


def _built(build: TenantBuild, data_dir: Path, memory: MemoryBudget) -> Flask:
    tenant, modules = build.tenant, build.apps.modules
    config = build.configure(TenantConfig(build.folder))
    with (
        modules.building(),
        using(modules),
        build.adopting(),
        secret_scope(config),
        host_log.watching(tenant.name, build.apps.log_handlers) as watch,
    ):
        app = _new_app(build) if tenant.app is None else _existing_app(build, tenant.app, watch)
        app.extensions[DECODING_MEMORY] = memory
        app.extensions[LOADED_ENDPOINTS] = []
        guard = add_migration_guard(app, tenant, data_dir)
        for name in tenant.blueprints:
            watch.begin(name)
            _add_endpoint(app, guard, name, modules)
    return app


def _new_app(build: TenantBuild) -> Flask:
    has_static = (build.folder / "static").is_dir()
    return Flask(
        own_import_name(build.tenant),
        root_path=str(build.folder),
        static_folder="static" if has_static else None,
    )


def _existing_app(build: TenantBuild, text: str, watch: LogWatch) -> Flask:
    """Return the app that `APP` names.

    Raises:
        ApplicationError: the app cannot be loaded, or several tenants would share it.
    """
    watch.begin(text)
    argument = FactoryArgument(build.configure(TenantConfig(build.folder)))
    app = load_app(parse_app(text), build.apps.modules, argument)
    if apps_of(app) is not build.apps:
        raise ApplicationError(
            f"application {text!r} is not created by the tenant's own code, so several tenants "
            "would share it; create the Flask object in a module of the application."
        )
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
