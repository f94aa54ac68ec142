"""The input of an audit (`AuditedTenant`) and the output of an audit (`Finding`)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flask import Flask

from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


@dataclass(frozen=True)
class AuditedTenant:
    """A tenant and the tenant's built app. The caller of the audit keeps the app open."""

    tenant: Tenant
    app: Flask
    wsgi: "WSGIApplication"
    """The host's WSGI application, which routes requests through all middleware to the app."""
    client_key: str = field(default="", repr=False)
    """The key of a client in the tenant's `CLIENTS`; empty if the tenant has no `CLIENTS`."""

    @property
    def name(self) -> str:
        """The tenant's name."""
        return self.tenant.name


@dataclass(frozen=True)
class Finding:
    """A value that tenants share, or a setting that exposes a tenant.

    A finding never contains a secret.
    """

    id: str
    """The key that accepts the finding in `AUDIT_ACCEPT`. The id is the same in every audit."""
    tenants: tuple[str, ...]
    text: str
    """A description of the finding's problem on one line."""
    remedy: str
    """The operator's action that fixes the finding's problem."""
    paths: tuple[str, ...] = ()
    """The reference path from each of the first two tenants: `acme: view … → _cache`."""
    place: str = ""
    """File and line of the problem, such as `corp/shop/models.py:3`, or a tenant file.

    `place` is empty if the file of the problem is unknown.
    """
    is_note: bool = False
    """Whether the finding describes a state that is often intended. A note never fails the
    audit."""
    accepted: str = ""
    """The reason that `AUDIT_ACCEPT` gives for the finding; empty if the finding is not
    accepted."""

    @property
    def is_problem(self) -> bool:
        """Whether the finding fails the audit."""
        return not (self.is_note or self.accepted)


def finding_id(kind: str, subject: str) -> str:
    """Return an id without spaces or quotes, because tenant files contain the ids of findings."""
    return f"{kind}:{re.sub(r'[^A-Za-z0-9_.@/-]+', '-', subject).strip('-')}"


def join_names(names: Sequence[str]) -> str:
    """Return `acme and globex`, or `acme, globex and 3 more`."""
    if len(names) > 2:  # noqa: PLR2004 - the docstring shows both forms
        return f"{names[0]}, {names[1]} and {len(names) - 2} more"
    return " and ".join(names)


def key_location(file: str, key: str) -> str:
    """Return the line on which a tenant file sets a key, such as `tenants/acme.py:3`.

    For an item of a key, such as `CLIENTS['web']`, `key_location` returns the item's line, or the
    key's line if no line contains the item. If no line sets the key, `key_location` returns only
    the file.
    """
    name, _, item = key.partition("[")
    try:
        lines = Path(file).read_text("utf-8", "replace").splitlines()
    except OSError:
        return file
    key_pattern = re.compile(rf"{re.escape(name)}\b")
    item_pattern = re.compile(rf"""["']{re.escape(item.strip("]'"))}["']""")
    key_line = next((n for n, line in enumerate(lines, 1) if key_pattern.match(line)), None)
    if key_line is None:
        return file
    later_lines = enumerate(lines[key_line - 1 :], key_line)
    item_lines = (n for n, line in later_lines if item and item_pattern.search(line))
    return f"{file}:{next(item_lines, key_line)}"
