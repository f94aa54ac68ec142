"""Connects tenants to their databases, and answers requests while a database is down.

Each tenant has its own SQLAlchemy engine, but all tenants of a process share one
`ConnectionBudget`. A circuit breaker prevents a database that is down from slowing down other
tenants. This package imports only the packages `http` and `errors`. The package `tenants` checks
each `DATABASE_URI` with this package. `app.factory` opens each app's database. Endpoints use the
database through `tenantry.db`.
"""
