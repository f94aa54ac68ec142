"""Defines the input of an audit (`AuditedTenant`) and its output (`Finding`)."""

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
    """A tenant and its app. The caller closes the app after the audit."""

    tenant: Tenant
    app: Flask
    wsgi: "WSGIApplication"
    """The host's WSGI application, which passes requests through all middleware to the app."""
    client_key: str = field(default="", repr=False)
    """A client key that the tenant accepts, or "" if the tenant has no `CLIENTS`."""

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
    """The ID of the finding, which is the same in every audit.

    To accept the finding, an operator writes this ID in `AUDIT_ACCEPT`.
    """
    tenants: tuple[str, ...]
    text: str
    """A one-line description of the problem."""
    remedy: str
    """What the operator can do to fix the problem."""
    paths: tuple[str, ...] = ()
    """How two of the tenants' apps reach the shared object, such as `acme: view … → _cache`."""
    place: str = ""
    """The file and the line of the problem, such as `corp/shop/models.py:3`, or "" if unknown."""
    is_note: bool = False
    """Whether the finding describes a condition that operators often intend.

    A finding about such a condition is called a note, and never fails the audit.
    """
    accepted: str = ""
    """Why `AUDIT_ACCEPT` accepts the finding; empty if the finding is not accepted."""

    @property
    def is_problem(self) -> bool:
        """Whether the finding fails the audit."""
        return not (self.is_note or self.accepted)


def finding_id(kind: str, subject: str) -> str:
    """Return the ID of a finding.

    An ID has no spaces or quotes, so operators can easily write it in a tenant file.
    """
    return f"{kind}:{re.sub(r'[^A-Za-z0-9_.@/-]+', '-', subject).strip('-')}"


def join_names(names: Sequence[str]) -> str:
    """Return `acme and globex`, or `acme, globex and 3 more`."""
    if len(names) > 2:  # noqa: PLR2004 - two names fit in the text
        return f"{names[0]}, {names[1]} and {len(names) - 2} more"
    return " and ".join(names)


def key_location(file: str, key: str) -> str:
    """Return the line on which a tenant file sets a key, such as `tenants/acme.py:3`.

    The key can also be an item, such as `CLIENTS['web']`. If the item has no line of its own,
    return the line of the whole key. If the file does not set the key, return only the name of the
    file.
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
