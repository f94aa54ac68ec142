"""Helps tests and benchmarks create the tables of the images endpoint."""

import importlib.util
from pathlib import Path
from types import ModuleType

from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, NullPool, create_engine

from tenantry.endpoints import images


def migrate(url: str) -> None:
    """Create the tables by running the migration."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        context = MigrationContext.configure(connection)
        revision = revision_module()
        if revision.revision in context.get_current_heads():
            return
        with Operations.context(context):
            revision.upgrade()
        context._ensure_version_table()
        connection.exec_driver_sql(f"INSERT INTO alembic_version VALUES ('{revision.revision}')")


def downgrade(engine: Engine) -> None:
    """Remove the tables by reverting the migration."""
    with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
        revision_module().downgrade()


def revision_module() -> ModuleType:
    """Return the module of the endpoint's only revision."""
    path = Path(str(images.__file__)).parent / "migrations/0001_images.py"
    spec = importlib.util.spec_from_file_location("images_0001", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
