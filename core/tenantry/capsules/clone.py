"""Where a clone's database belongs: beside the one of the tenant that is cloned.

A clone is a backup that is restored at once; only its place is not said by anybody.
"""

import re
from contextlib import ExitStack

from sqlalchemy import URL

from tenantry.capsules.postgres_database import execute, is_left_place, mark_place
from tenantry.database.url import database_identity

_SCHEMA_PART = 4
"""Where `database_identity` has a schema that is not the usual one."""


def create_clone_database(url: URL, name: str, undo: ExitStack) -> URL:
    """Make a database or a schema of this name beside a tenant's, on its server.

    What a killed clone has left of it goes before.

    Args:
        url: the tenant's database; a server's, not a file.
        name: of the new one.
        undo: drops it.

    Raises:
        DatabaseError: the server refuses it.
    """
    new, kind = _beside(url, name)
    drop = f'DROP {kind} "{name}"' + " CASCADE" * (kind == "SCHEMA")
    if is_left_place(new, kind):
        execute(url, drop)
    execute(url, f'CREATE {kind} "{name}"')
    undo.callback(execute, url, drop)
    mark_place(new, kind, name)
    return new


def _beside(url: URL, name: str) -> tuple[URL, str]:
    """Return where a clone of a server's database belongs, and what it is: DATABASE or SCHEMA.

    A schema beside its schema if it has one of its own; else a database beside it.
    """
    identity = database_identity(url.render_as_string(hide_password=False)) or ()
    if len(identity) > _SCHEMA_PART:
        option = url.query.get("options", "")
        words = option if isinstance(option, str) else " ".join(option)
        words = re.sub(r"(?:-c\s*|--)search_path=(?:\\.|\S)*", "", words).strip()
        options = f'{words} -csearch_path="{name}"'.strip()
        new = url.update_query_dict({"options": options})
        return new, "SCHEMA"
    return url.set(database=name), "DATABASE"
