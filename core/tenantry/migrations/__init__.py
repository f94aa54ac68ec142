"""Migrations of the tenants' databases, and the guard of tables that are behind the code.

`migrations` reads revision files, compares the revisions with each database, and runs Alembic in
child processes, for one database or for a fleet. `migrations` may import `tenants`, `endpoints`,
`database`, `observability`, `http` and `settings`. When `tenantry.app.factory` builds an app,
`guard.add_migration_guard` is the first function called. `tenantry.cli.db` starts fleet runs.
"""
