"""Keys, settings and public names of later versions.

The host rejects a planned key by name instead of ignoring it. Otherwise, a tenant with `ISOLATION =
"process"` would run without the isolation that the tenant file asks for.
"""

PLANNED_KEYS = (
    "ISOLATION",
    "WORKERS",
    "THREADS",
    "MEMORY_LIMIT",
    "CPU_LIMIT",
    "ENV",
    "STORAGE",
    "API_DOCS",
)
"""Tenant file keys that a later version of Tenantry supports."""

PLANNED_SETTINGS = (
    "admin_token",
    "admin_read_only",
    "fleet",
    "host_name",
    "advertise",
    "storage",
)
"""Host settings that a later version of Tenantry supports, as field names of `HostSettings`."""

PLANNED_NAMES = ("storage",)
"""Public names that a later version of the package `tenantry` provides."""

PLANNED = "comes with a later version of Tenantry; remove it."
"""The end of each message that rejects a planned key, setting or public name."""
