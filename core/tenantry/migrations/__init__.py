"""Migrations of the tenants' databases, and the guard that depends on their state.

The package reads revision files, compares them with each database, and runs Alembic in child
processes, for one database or for a fleet. It may import `tenants`, `endpoints`, `database`,
`observability`, `http` and `settings`. `tenantry.app.factory` calls it first, through
`guard.add_migration_guard`, when it builds an app. `tenantry.cli.db` starts fleet runs.
"""
