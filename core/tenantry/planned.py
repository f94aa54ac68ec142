"""Keys, settings and public names of later versions.

The documentation mentions planned keys, but this version cannot apply planned keys. The host
rejects a planned key by name, because a tenant with `ISOLATION = "process"` would be unprotected if
the host ignored the key.
"""

PLANNED_KEYS = (
    "HOSTS",
    "OLD_HOSTS",
    "OLD_PREFIXES",
    "APP",
    "APP_DIR",
    "MIGRATIONS",
    "ISOLATION",
    "WORKERS",
    "THREADS",
    "MEMORY_LIMIT",
    "CPU_LIMIT",
    "ENV",
    "STORAGE",
    "API_DOCS",
    "DATABASE_OPTIONS",
)
"""Keys of a tenant file that a later version of Tenantry supports."""

PLANNED_SETTINGS = (
    "app_dir",
    "admin_token",
    "admin_hosts",
    "admin_read_only",
    "host_pattern",
    "trusted_headers",
    "fleet",
    "host_name",
    "advertise",
    "storage",
)
"""Host settings that a later version of Tenantry supports, spelled like fields of
`HostSettings`."""

PLANNED_NAMES = ("current_tenant", "storage", "tenant", "testing")
"""Attributes of the package `tenantry` that a later version of Tenantry has."""

PLANNED = "comes with a later version of Tenantry; remove it."
"""The end of the message that rejects a planned name."""
