"""Provides `tenantry.current_tenant`, which tells endpoint code the tenant that it works for."""

from pathlib import Path

from flask import current_app, has_app_context

from tenantry.database.session import owner_of_database


class CurrentTenant:
    """The tenant of the current app context. Outside of an app context, any access raises an error.

    An app context exists during a request, during a Flask command, and in the block of
    `with tenantry.tenant(…):`.
    """

    @property
    def name(self) -> str:
        """The tenant's name, as in the name of its tenant file."""
        return _name()

    @property
    def app_name(self) -> str:
        """The tenant's display name, `APP_NAME`."""
        _name()
        return str(current_app.config["APP_NAME"])

    @property
    def data_dir(self) -> Path:
        """The tenant's folder, `<data>/<name>`."""
        _name()
        return Path(current_app.instance_path)

    def __repr__(self) -> str:
        return f"<current_tenant: {_name() if has_app_context() else 'none'}>"


current_tenant = CurrentTenant()
"""The tenant of the current app context."""


def _name() -> str:
    if not has_app_context():
        raise RuntimeError(
            "current_tenant is used outside of an app context; use it in a request or a Flask "
            'command, or in a block: with tenantry.tenant("NAME"):'
        )
    name = owner_of_database(current_app)
    if name is None:
        raise RuntimeError(
            f"current_tenant is used in the app {current_app.name!r}, which Tenantry has not "
            "built, or has closed."
        )
    return name
