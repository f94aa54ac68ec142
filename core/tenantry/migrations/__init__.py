"""Migrates the tenants' databases, and protects endpoints from outdated tables.

This package reads revision files, compares them with the revisions of databases, and runs Alembic
in child processes. The package may import `tenants`, `endpoints`, `database`, `observability`,
`http` and `settings`. `app.factory` adds a `MigrationGuard` to each app. The command `tenantry db`
starts fleet runs, in which the databases of many tenants are migrated.
"""
