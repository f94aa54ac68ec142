"""Values that two tenants have in common: keys, databases, folders, names, cookies and prefixes.

Reads the configuration of the built apps, because an endpoint may have changed what the tenant
file says. Does not compare names of Prometheus metrics: a metric that two tenants share is an
object, and a second metric of the same name makes the build fail.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

from tenantry.audit.data_locations import databases, file_identity, folders, stores
from tenantry.audit.finding import AuditedTenant, Finding, finding_id, key_location
from tenantry.grammar import are_nested
from tenantry.tenants.openid import OpenId

_SIGNING_KEY = re.compile(r"SECRET_KEY$|SIGNING_KEY$|JWT_PRIVATE_KEY$|SECURITY_PASSWORD_SALT$")


@dataclass(frozen=True)
class _Comparison:
    """One kind of value that should differ between tenants."""

    kind: str
    values: Callable[[AuditedTenant], Iterator[tuple[str, object]]]
    """Yields each value of a tenant with the key that sets it."""
    statement: str
    """Follows "'KEY' of acme and 'KEY' of globex"."""
    remedy: str


def compare_values(tenants: Sequence[AuditedTenant], data_dir: Path) -> Iterator[Finding]:
    """Yield a finding for each value that two or more tenants have in common."""
    for comparison in _comparisons(data_dir):
        yield from _equal_values(comparison, tenants)
    yield from _shared_tokens(tenants)
    yield from _nested_prefixes(tenants)
    yield from _foreign_folders(tenants, data_dir)


def _comparisons(data_dir: Path) -> list[_Comparison]:
    return [
        _Comparison(
            kind="shared-secret",
            values=_secrets,
            statement="are the same key",
            remedy="give each tenant its own: "
            "python -c 'import secrets; print(secrets.token_hex(32))'",
        ),
        _Comparison(
            kind="shared-database",
            values=lambda audited: databases(audited.app.config),
            statement="name the same database",
            remedy="give each tenant its own database, and move its rows there",
        ),
        _Comparison(
            kind="shared-store",
            values=lambda audited: stores(audited.app.config),
            statement="name the same store",
            remedy="give each tenant its own database number or key prefix (CACHE_KEY_PREFIX)",
        ),
        _Comparison(
            kind="shared-folder",
            values=lambda audited: _folder_identities(audited, data_dir),
            statement="are the same folder",
            remedy="give each tenant its own folder, and remove links to another tenant's folder",
        ),
        _Comparison(
            kind="shared-log-name",
            values=lambda audited: iter([("app.name", audited.app.name)]),
            statement="are equal, so both apps write to the same logger",
            remedy="do not change 'app.name': it selects the tenant's logger",
        ),
        _Comparison(
            kind="shared-cookie-name",
            values=lambda audited: iter(
                [("SESSION_COOKIE_NAME", audited.app.config["SESSION_COOKIE_NAME"])]
            ),
            statement="are the same cookie name",
            remedy="remove SESSION_COOKIE_NAME: the default differs for each tenant",
        ),
        _Comparison(
            kind="shared-client-key",
            values=_client_keys,
            statement="are the same key, so the client of one can call the other",
            remedy="give the client a different key at each tenant: tenantry key NAME CLIENT",
        ),
    ]


def _equal_values(comparison: _Comparison, tenants: Sequence[AuditedTenant]) -> Iterator[Finding]:
    owners: dict[object, dict[str, str]] = {}
    files = {audited.name: audited.tenant.file for audited in tenants}
    for audited in tenants:
        for key, value in comparison.values(audited):
            owners.setdefault(value, {}).setdefault(audited.name, key)
    for keys in owners.values():
        if len(keys) > 1:
            (first, first_key), (second, second_key), *more = keys.items()
            others = f" (and {len(more)} more tenants)" if more else ""
            yield Finding(
                id=finding_id(comparison.kind, first_key),
                tenants=tuple(keys),
                text=f"{first_key!r} of {first} and {second_key!r} of {second}{others} "
                f"{comparison.statement}",
                remedy=comparison.remedy,
                paths=(
                    f"{first}: {files[first]} → {first_key}",
                    f"{second}: {files[second]} → {second_key}",
                ),
                place=key_location(files[second], second_key),
            )


def _secrets(audited: AuditedTenant) -> Iterator[tuple[str, object]]:
    config = audited.app.config
    named = [(key, value) for key, value in config.items() if _SIGNING_KEY.search(key) and value]
    for number, old_key in enumerate(config["SECRET_KEY_FALLBACKS"] or ()):
        named.append((f"SECRET_KEY_FALLBACKS[{number}]", old_key))
    for key, value in named:
        yield key, value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _folder_identities(audited: AuditedTenant, data_dir: Path) -> Iterator[tuple[str, object]]:
    yield f"<data>/{audited.name}", file_identity(data_dir / audited.name)
    for key, path in folders(audited.app.config):
        yield key, file_identity(path)


def _client_keys(audited: AuditedTenant) -> Iterator[tuple[str, object]]:
    for client in () if audited.tenant.clients is None else audited.tenant.clients.all:
        for digest in client.digests:
            yield f"CLIENTS[{client.name!r}]", digest


def _shared_tokens(tenants: Sequence[AuditedTenant]) -> Iterator[Finding]:
    """Yield the tenants that accept the same token: one issuer, one audience, equal claims."""
    groups: dict[tuple[str, str], list[tuple[AuditedTenant, OpenId]]] = {}
    for audited in tenants:
        if (openid := audited.tenant.oidc) is not None:
            for audience in openid.audiences:
                groups.setdefault((openid.issuer, audience), []).append((audited, openid))
    for (issuer, audience), members in groups.items():
        files = {
            audited.name: audited.tenant.file
            for first, second in combinations(members, 2)
            if not _require_different_claims(first[1], second[1])
            for audited, _ in (first, second)
        }
        if files:
            yield Finding(
                id=finding_id("shared-token", audience),
                tenants=tuple(files),
                text=f"{' and '.join([*files][:2])} accept the same tokens: "
                f"'issuer' {issuer}, 'audience' {audience!r}",
                remedy="give each tenant its own 'audience' in OIDC, or 'claims' with values that "
                "no other tenant requires",
                paths=tuple(f"{name}: {file} → OIDC" for name, file in [*files.items()][:2]),
                place=key_location([*files.values()][1], "OIDC"),
            )


def _require_different_claims(first: OpenId, second: OpenId) -> bool:
    """Whether no token can satisfy both: one claim has no value that both accept."""
    wanted = [
        {name: {(type(value), value) for value in values} for name, values in openid.claims}
        for openid in (first, second)
    ]
    common = wanted[0].keys() & wanted[1].keys()
    return any(wanted[0][name].isdisjoint(wanted[1][name]) for name in common)


def _nested_prefixes(tenants: Sequence[AuditedTenant]) -> Iterator[Finding]:
    ordered = sorted(tenants, key=lambda audited: audited.tenant.url_prefix.split("/"))
    for outer, inner in pairwise(ordered):
        prefixes = outer.tenant.url_prefix, inner.tenant.url_prefix
        if are_nested(*prefixes):
            yield Finding(
                id="nested-prefix",
                tenants=(outer.name, inner.name),
                text=f"'URL_PREFIX' {prefixes[1]} of {inner.name} is inside {prefixes[0]}, so "
                f"browsers send it the cookies of {outer.name}",
                remedy="choose prefixes that are not inside each other",
                paths=tuple(
                    f"{audited.name}: {audited.tenant.file} → URL_PREFIX"
                    for audited in (outer, inner)
                ),
                place=key_location(inner.tenant.file, "URL_PREFIX"),
            )


def _foreign_folders(tenants: Sequence[AuditedTenant], data_dir: Path) -> Iterator[Finding]:
    owners = {os.path.realpath(data_dir / audited.name): audited.name for audited in tenants}
    for audited in tenants:
        for key, path in folders(audited.app.config):
            real_path = Path(os.path.realpath(path))
            for folder in (real_path, *real_path.parents):
                owner = owners.get(str(folder), audited.name)
                if owner != audited.name:
                    yield Finding(
                        id=finding_id("foreign-folder", key),
                        tenants=(audited.name, owner),
                        text=f"{key!r} of {audited.name} is in the data folder of {owner}",
                        remedy=f"move it into <data>/{audited.name}",
                        paths=(f"{audited.name}: {audited.tenant.file} → {key} → {real_path}",),
                        place=key_location(audited.tenant.file, key),
                    )
