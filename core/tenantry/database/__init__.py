"""A tenant's own database: engine, connection pool, and what happens when it is unavailable.

All tenants of a process share one `ConnectionBudget`. Each tenant has its own engine, whose pool
takes its connections from that budget. A circuit breaker for each server keeps a database that is
down from costing other tenants anything. This package imports only `http` and `errors`.
`tenants` calls it first, to check a `DATABASE_URI`; then `app.factory` opens each app's database,
and endpoints use it through `tenantry.db`.
"""
