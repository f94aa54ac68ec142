"""Describes tenants, and compares two sets of descriptions.

`tenantry plan` compares the tenants folder with the served tenants, or with a saved snapshot.

A description contains no secrets. Instead, it contains fingerprints, which show only whether a
secret has changed. Fingerprints are comparable only if they were made with the same random `salt`.
"""

import hashlib
import hmac
import json
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tenantry.errors import TenantryError
from tenantry.observability.redaction import MASK, redact_value
from tenantry.tenants.address import Address, address_of
from tenantry.tenants.address_claims import AddressClaims
from tenantry.tenants.model import Tenant

Description = Mapping[str, Any]
"""A tenant's description as JSON data.

It has the form `{"prefix", "address", "endpoints", "keys": {KEY: text}}`.
"""

Routes = Callable[[Sequence[str]], Sequence[str]]
"""A function that returns the routes of endpoints without the tenant's prefix: `GET /images/`."""

_KEYS_WITH_A_LINE_OF_THEIR_OWN = ("URL_PREFIX", "BLUEPRINTS")


@dataclass(frozen=True)
class Change:
    """One difference between two descriptions of a tenant."""

    tenant: str
    what: str
    """The kind of difference: `added`, `removed`, `stays`, `prefix`, `database`, `key`, `endpoint`
    or `route`."""
    text: str

    def __str__(self) -> str:
        """Return the difference as a line of text: `~ acme: …`."""
        sign = {"added": "+", "removed": "-"}.get(self.what, "~")
        return f"{sign} {self.tenant}: {self.text}"


def describe(tenant: Tenant, salt: str) -> dict[str, Any]:
    """Return the description of a tenant."""
    config = tenant.config()
    secrets = [config["SECRET_KEY"], *config["SECRET_KEY_FALLBACKS"]]
    if tenant.database_url.password:
        secrets.append(tenant.database_url.password)
    keys = {}
    for key, value in config.items():
        if key == "APP_DIR" and "APP_DIR" not in tenant.keys_set:
            continue  # the default depends on the folder in which a command starts
        is_secret = key in tenant.keys_with_secrets
        shown = MASK if is_secret else redact_value(key, value, secrets)
        is_plain = shown is value or shown == value
        keys[key] = _text(value) if is_plain else _redacted_text(key, value, shown, salt)
    # `address` has the form of JSON, so that a saved description equals a new one.
    prefix, *names = tenant.address
    return {
        "prefix": tenant.url_prefix,
        "address": [prefix, *map(list, names)],
        "endpoints": list(tenant.blueprints),
        "keys": keys,
    }


def _address(description: Description) -> Address:
    # Snapshots of earlier versions have no addresses.
    return address_of(*description.get("address", [description["prefix"]]))


def _redacted_text(key: str, value: Any, shown: Any, salt: str) -> str:
    data = f"{key} {_text(value)}".encode("utf-8", "surrogatepass")
    fingerprint = hmac.new(salt.encode(), data, hashlib.sha256).hexdigest()[:8]
    return f"{MASK if shown == MASK else repr(shown)} (#{fingerprint})"


def _text(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python does not convert an integer of over 4,300 digits
        return f"{type(value).__name__} too long to show"


def compare(
    old: Mapping[str, Description],
    new: Mapping[str, Description],
    routes: Routes,
    rejected: Mapping[str, str] = MappingProxyType({}),
) -> list[Change]:
    """Return the differences between two sets of descriptions, sorted by tenant name.

    Args:
        old: the descriptions before the change, by tenant name.
        new: the descriptions after the change, by tenant name.
        routes: returns the routes of endpoints.
        rejected: maps each tenant that keeps its old version, because its newest file is rejected,
            to the reason.
    """
    changes: list[Change] = []
    for name in sorted(old.keys() | new.keys()):
        if name in rejected:
            if name in old:
                changes.append(Change(name, "stays", f"stays as it is: {rejected[name]}"))
        elif name not in old:
            text = f"new at {_address(new[name]).text}, {_parts(new[name])}"
            changes.append(Change(name, "added", text))
        elif name not in new:
            changes.append(Change(name, "removed", f"gone from {_address(old[name]).text}"))
        else:
            changes += _differences(name, old[name], new[name], routes)
    return changes


def _parts(description: Description) -> str:
    """Return the application and the endpoints of a new tenant."""
    app = description["keys"].get("APP", "None")
    parts = [] if app == "None" else [f"application {app}"]
    if description["endpoints"]:
        parts.append(f"endpoints {', '.join(description['endpoints'])}")
    return ", ".join(parts)


def _differences(name: str, old: Description, new: Description, routes: Routes) -> Iterator[Change]:
    before_move, after_move = _address(old).text, _address(new).text
    if before_move != after_move:
        yield Change(name, "prefix", f"moves from {before_move} to {after_move}")
    for key in sorted(old["keys"].keys() | new["keys"].keys()):
        before, after = (side["keys"].get(key, "not set") for side in (old, new))
        if before != after and key not in _KEYS_WITH_A_LINE_OF_THEIR_OWN:
            what = "database" if key == "DATABASE_URI" else "key"
            yield Change(name, what, f"{key}: {before} → {after}")
    if old["endpoints"] != new["endpoints"]:
        yield from _only_in("gains", name, new, old, routes)
        yield from _only_in("loses", name, old, new, routes)


def _only_in(
    verb: str, name: str, side: Description, other: Description, routes: Routes
) -> Iterator[Change]:
    for endpoint in side["endpoints"]:
        if endpoint not in other["endpoints"]:
            yield Change(name, "endpoint", f"{verb} endpoint {endpoint}")
    for route in sorted(set(routes(side["endpoints"])) - set(routes(other["endpoints"]))):
        method, _, rule = route.partition(" ")
        yield Change(name, "route", f"{verb} {method} {_address(side).text.rstrip('/')}{rule}")


def find_blocked_moves(
    old: Mapping[str, Description], new: Mapping[str, Description], rejected: Collection[str]
) -> dict[str, str]:
    """Return the reason for each tenant that cannot move to its new address, by tenant name.

    A host moves tenants one by one, each to an address that is free at that moment. A tenant whose
    newest file is rejected keeps its address. Two tenants that swap addresses block each other.
    """
    current, claims = dict[str, Address](), AddressClaims()
    for name in old:
        if name in new or name in rejected:
            current[name] = _address(old[name])
            claims.add(name, current[name])
    moving = {
        name: _address(description)
        for name, description in new.items()
        if name not in rejected and _address(description) != current.get(name)
    }
    while True:
        reasons = {
            name: text
            for name, address in moving.items()
            for _, _, text in claims.conflicts(name, address)
        }
        free = sorted(moving.keys() - reasons.keys())
        if not free:
            return reasons
        for name in free:
            if name in current:
                claims.remove(name, current[name])
            claims.add(name, moving.pop(name))


def snapshot_text(salt: str, tenants: Mapping[str, Any]) -> str:
    """Return descriptions as the text of a snapshot."""
    return json.dumps({"salt": salt, "tenants": tenants}, indent=2) + "\n"


def write_snapshot(path: Path, salt: str, tenants: Mapping[str, Any]) -> None:
    """Write descriptions to a snapshot file (mode 0600), completely or not at all.

    Only the owner can read the snapshot, because short secrets can be guessed from the fingerprints
    and the salt.

    Raises:
        TenantryError: the file cannot be written, or it is a link, a device or a pipe, which the
            new file would replace.
    """
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise TenantryError(f"{path} is not a regular file; choose another file, or - for stdout.")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(snapshot_text(salt, tenants))
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise TenantryError(f"cannot write {path}: {error.strerror}.") from error


def read_snapshot(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the salt of a snapshot, and the descriptions in it by tenant name.

    Raises:
        TenantryError: the file is not a snapshot.
    """
    try:
        document = json.loads(path.read_bytes())
        salt, tenants = str(document["salt"]), dict(document["tenants"])
        compare(tenants, tenants, lambda _: ())  # a malformed description raises an exception
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TenantryError(
            f"{path} is not a snapshot; create one with: tenantry plan --save FILE."
        ) from error
    return salt, tenants
