"""What two tenants have in common by value: keys, databases, folders, names, cookies, prefixes.

Asks the built apps, not only the files: an endpoint may have changed its app's configuration.
Metric names are not compared: the host's go by the tenant's name, which two cannot have. Those of
an endpoint in Prometheus's default registry are objects (`audit_objects`) where two tenants have
one; where each makes its own of one name, the second cannot be built, which is a finding too.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from tenantry.audit.finding import Audited, Finding, stable_id
from tenantry.audit.places import databases, folders, inode, stores
from tenantry.grammar import are_nested
from tenantry.tenants.openid import OpenId

_SIGNING_KEY = re.compile(r"SECRET_KEY$|SIGNING_KEY$|JWT_PRIVATE_KEY$|SECURITY_PASSWORD_SALT$")

Values = Callable[[Audited], Iterator[tuple[str, object]]]
"""What a tenant has, each with the key that says so."""


def compare_values(audited: Sequence[Audited], data_dir: Path) -> Iterator[Finding]:
    """Yield a finding for each value that two or more tenants have, by a key of either."""
    yield from _equal(
        audited, _secrets, "shared-secret", "is a key of the others too",
        "give each tenant its own: python -c 'import secrets; print(secrets.token_hex(32))'",
    )  # fmt: skip
    yield from _equal(
        audited, lambda one: databases(one.app.config), "shared-database", "is one database",
        "give each tenant a database of its own, and leave each row to its owner",
    )  # fmt: skip
    yield from _equal(
        audited, lambda one: stores(one.app.config), "shared-store", "is one store",
        "give each tenant a number of its own there, or a key prefix (CACHE_KEY_PREFIX)",
    )  # fmt: skip
    yield from _equal(
        audited, lambda one: _folders(one, data_dir), "shared-folder", "is one folder",
        "give each tenant a folder of its own, and let no link lead to a neighbour's",
    )  # fmt: skip
    yield from _equal(
        audited, _log_names, "shared-log-name", "is one logger",
        "leave app.name as it is: lines and handlers go by it",
    )  # fmt: skip
    yield from _equal(
        audited, _cookie_names, "shared-cookie-name", "is one cookie name",
        "remove SESSION_COOKIE_NAME: each tenant has a name of its own by itself",
    )  # fmt: skip
    yield from _equal(
        audited, _client_keys, "shared-client-key", "lets its client into the others too",
        "give the client a key for each tenant: tenantry key NAME CLIENT",
    )  # fmt: skip
    yield from _same_tokens(audited)
    yield from _inside_one_another(audited, data_dir)


def _equal(
    audited: Sequence[Audited], values: Values, kind: str, what: str, remedy: str
) -> Iterator[Finding]:
    owners: dict[object, dict[str, str]] = {}
    files = {one.name: one.tenant.file for one in audited}
    for one in audited:
        for key, value in values(one):
            owners.setdefault(value, {}).setdefault(one.name, key)
    for keys in owners.values():
        if len(keys) > 1:
            names = tuple(keys)
            first = keys[names[0]]
            yield Finding(
                stable_id(kind, first),
                names,
                f"{first} of {names[0]} {what}, with {keys[names[1]]} of {names[1]}"
                + (f" and {len(names) - 2} more" if len(names) > 2 else ""),  # noqa: PLR2004
                remedy,
                tuple(f"{name}: {files[name]} → {keys[name]}" for name in names[:2]),
                line_of_key(files[names[1]], keys[names[1]]),
            )


def _secrets(one: Audited) -> Iterator[tuple[str, object]]:
    for key, value in one.app.config.items():
        if _SIGNING_KEY.search(key) and value:
            yield key, _text(value)
    for place, old in enumerate(one.app.config["SECRET_KEY_FALLBACKS"] or ()):
        yield f"SECRET_KEY_FALLBACKS[{place}]", _text(old)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _folders(one: Audited, data_dir: Path) -> Iterator[tuple[str, object]]:
    yield f"<data>/{one.name}", inode(data_dir / one.name)
    for key, path in folders(one.app.config):
        yield key, inode(path)


def _log_names(one: Audited) -> Iterator[tuple[str, object]]:
    yield "app.name", one.app.name


def _cookie_names(one: Audited) -> Iterator[tuple[str, object]]:
    yield "SESSION_COOKIE_NAME", one.app.config["SESSION_COOKIE_NAME"]


def _client_keys(one: Audited) -> Iterator[tuple[str, object]]:
    for client in () if one.tenant.clients is None else one.tenant.clients.all:
        for digest in client.digests:
            yield f"CLIENTS[{client.name!r}]", digest


def _same_tokens(audited: Sequence[Audited]) -> Iterator[Finding]:
    """Yield who takes the tokens of one issuer for one audience, with no claim that tells whose."""
    takers: dict[tuple[str, str], list[tuple[Audited, OpenId]]] = {}
    for one in audited:
        if (openid := one.tenant.oidc) is not None:
            for audience in openid.audiences:
                takers.setdefault((openid.issuer, audience), []).append((one, openid))
    for (issuer, audience), those in takers.items():
        alike = {
            one.name: one
            for pair in combinations(those, 2)
            if not _are_told_apart(pair[0][1], pair[1][1])
            for one, _ in pair
        }
        if alike:
            names = tuple(alike)
            files = [alike[name].tenant.file for name in names[:2]]
            yield Finding(
                stable_id("shared-token", audience),
                names,
                f"a token of {issuer} for {audience!r} lets into {' and '.join(names[:2])}"
                + (f" and {len(names) - 2} more" if len(names) > 2 else ""),  # noqa: PLR2004
                "give each tenant an audience of its own, or ask for 'claims' that no other has",
                tuple(
                    f"{name}: {file} → OIDC" for name, file in zip(names[:2], files, strict=True)
                ),
                line_of_key(files[1], "OIDC"),
            )


def _are_told_apart(one: OpenId, other: OpenId) -> bool:
    """Whether some claim must have a value here that it cannot have there."""
    wanted = [
        {name: {(type(value), value) for value in values} for name, values in openid.claims}
        for openid in (one, other)
    ]
    return any(wanted[0][name].isdisjoint(wanted[1][name]) for name in wanted[0] & wanted[1].keys())


def _inside_one_another(audited: Sequence[Audited], data_dir: Path) -> Iterator[Finding]:
    """Yield what lies inside a neighbour's: prefixes, and folders under another's data folder."""
    ordered = sorted(audited, key=lambda one: one.tenant.url_prefix.split("/"))
    prefixes = [(one.tenant.url_prefix, one) for one in ordered]
    for (above, outer), (below, inner) in pairwise(prefixes):
        if are_nested(above, below):
            yield Finding(
                "nested-prefix", (outer.name, inner.name),
                f"{below} lies inside {above}: a browser sends the cookies of {outer.name} there",
                "choose prefixes that do not lie inside one another",
                tuple(f"{one.name}: {one.tenant.file} → URL_PREFIX" for one in (outer, inner)),
                line_of_key(inner.tenant.file, "URL_PREFIX"),
            )  # fmt: skip
    roots = {os.path.realpath(data_dir / one.name): one.name for one in audited}
    for one in audited:
        for key, path in folders(one.app.config):
            real = os.path.realpath(path)
            for root in (real, *map(str, Path(real).parents)):
                owner = roots.get(root)
                if owner not in (None, one.name):
                    yield Finding(
                        stable_id("foreign-folder", key), (one.name, str(owner)),
                        f"{key} of {one.name} lies in the data folder of {owner}",
                        f"put it under <data>/{one.name}",
                        (f"{one.name}: {one.tenant.file} → {key} → {real}",),
                        line_of_key(one.tenant.file, key),
                    )  # fmt: skip


def line_of_key(file: str, key: str) -> str:
    """Return `tenants/acme.py:3`, where a key is set; only the file where it is not found.

    Of `CLIENTS['web']` it is the line of `web`, if there is one.
    """
    name, _, inner = key.partition("[")
    try:
        lines = Path(file).read_text("utf-8", "replace").splitlines()
    except OSError:
        return file
    found = next(
        (n for n, line in enumerate(lines, 1) if re.match(rf"{re.escape(name)}\b", line)), None
    )
    if found is None:
        return file
    item = re.compile(rf"""["']{re.escape(inner.strip("]'"))}["']""")
    inside = (n for n, line in enumerate(lines, 1) if n >= found and inner and item.search(line))
    return f"{file}:{next(inside, found)}"
