"""Keys, settings and public names of later versions.

They are documented, but this version cannot honor them. They are rejected by name, because a
tenant that asks for `ISOLATION = "process"` and is served without it would be unprotected.
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
"""Keys of a tenant file."""

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
"""Host settings, as `HostSettings` would name its fields."""

PLANNED_NAMES = ("current_tenant", "storage", "tenant", "testing")
"""Attributes of `tenantry`."""

PLANNED = "comes with a later version of Tenantry; remove it."
"""What the rejection of such a name says."""
