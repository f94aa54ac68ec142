"""What an audit examines and what it reports."""

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
    """A tenant and its built app. The caller of the audit keeps the app open."""

    tenant: Tenant
    app: Flask
    wsgi: "WSGIApplication"
    """The host, which routes a request through the full stack to the app."""
    client_key: str = field(default="", repr=False)
    """The key of an authorized client; empty if the tenant has no `CLIENTS`."""

    @property
    def name(self) -> str:
        """The tenant's name."""
        return self.tenant.name


@dataclass(frozen=True)
class Finding:
    """Something that tenants share, or that exposes a tenant. Never contains a secret."""

    id: str
    """The key in `AUDIT_ACCEPT`. The same in every run."""
    tenants: tuple[str, ...]
    text: str
    """What was found, on one line."""
    remedy: str
    """What to do about it."""
    paths: tuple[str, ...] = ()
    """The reference path from each of the first two tenants: `acme: view … → _cache`."""
    place: str = ""
    """Where it is, such as `corp/shop/models.py:3` or a tenant file. Empty if unknown."""
    is_note: bool = False
    """Worth knowing, but often intended. A note never fails the audit."""
    accepted: str = ""
    """The reason given in `AUDIT_ACCEPT`."""

    @property
    def is_problem(self) -> bool:
        """Whether the finding fails the audit."""
        return not (self.is_note or self.accepted)


def finding_id(kind: str, subject: str) -> str:
    """Return an id without spaces or quotes, because it is written in tenant files."""
    return f"{kind}:{re.sub(r'[^A-Za-z0-9_.@/-]+', '-', subject).strip('-')}"


def join_names(names: Sequence[str]) -> str:
    """Return `acme and globex`, or `acme, globex and 3 more`."""
    if len(names) > 2:  # noqa: PLR2004 - as shown above
        return f"{names[0]}, {names[1]} and {len(names) - 2} more"
    return " and ".join(names)


def key_location(file: str, key: str) -> str:
    """Return the line on which a tenant file sets a key, such as `tenants/acme.py:3`.

    For an item of a key, such as `CLIENTS['web']`, this is the item's own line if there is one.
    Without a matching line, returns only the file.
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
