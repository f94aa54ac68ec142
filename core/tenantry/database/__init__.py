"""A tenant's database: engine, connection pool, and responses while the database is unavailable.

All tenants of a process share one `ConnectionBudget`. Each tenant has an engine, and the pool of
the engine takes connections from the budget. A circuit breaker for each server prevents a database
that is down from slowing other tenants. `database` imports only the packages `http` and `errors`.
`tenants` is the first caller of `database`, to check a `DATABASE_URI`; then `app.factory` opens
each app's database, and endpoints use the database through `tenantry.db`.
"""
