"""Finds unsafe settings of tenants.

Notes tell the operator that tenants share one process, and which tenants share a host name.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flask import Flask

from tenantry.audit.finding import AuditedTenant, Finding, finding_id, key_location
from tenantry.audit.raw_access import own_dict, qualified_name
from tenantry.tenants import secrets
from tenantry.tenants.cookie_names import find_lost_cookies
from tenantry.tenants.model import check_secret

MIN_DISTINCT_CHARACTERS = 8
"""Minimum number of different characters in a secret key.

Of 30 million random keys with 32 hexadecimal digits, only one has fewer different digits.
"""

_READABLE_BY_OTHERS = stat.S_IRGRP | stat.S_IROTH
_SEARCHABLE_BY_OTHERS = stat.S_IXGRP | stat.S_IXOTH
"""Mode bits that let other users open the files in a folder."""
_MAX_WSGI_LAYERS = 20


@dataclass(frozen=True)
class _Rule:
    """A rule that detects an unsafe setting of an app."""

    id: str
    key: str
    is_broken: Callable[[AuditedTenant], object]
    text: str
    remedy: str


def check_settings(
    tenants: Sequence[AuditedTenant], data_dir: Path, trusted_hosts: Sequence[str]
) -> Iterator[Finding]:
    """Yield a finding for each unsafe setting of each tenant.

    If operators may intend a setting, the finding is a note.

    Args:
        tenants: the tenants, with their apps.
        data_dir: the host's `DATA_DIR`, which holds the folder of secrets.
        trusted_hosts: the host's `TRUSTED_HOSTS`; empty means any host name.
    """
    texts = {audited.name: _read_text(audited.tenant.file) for audited in tenants}
    for audited in tenants:
        for rule in _RULES:
            if rule.is_broken(audited):
                yield _setting(audited, rule.id, rule.key, rule.text, rule.remedy)
        for key, text in find_lost_cookies(audited.app.config):
            what, _, remedy = text.rpartition("; ")
            yield _setting(audited, finding_id("lost-cookie", key), key, f"{key!r}: {what}", remedy)
        yield from _weak_keys(audited)
        yield from _key_in_file(audited, texts[audited.name])
        yield from _public_access(audited, has_trusted_hosts=bool(trusted_hosts))
    yield from _readable_secrets(tenants, data_dir, texts)
    if len(tenants) > 1:
        yield _one_process(tenants)
    yield from _one_origin(tenants, trusted_hosts)


def _setting(audited: AuditedTenant, id_: str, key: str, text: str, remedy: str) -> Finding:
    """Return a finding about one key of one tenant."""
    file = audited.tenant.file
    return Finding(
        id=id_,
        tenants=(audited.name,),
        text=text,
        remedy=remedy,
        paths=(f"{audited.name}: {file} → {key}",),
        place=key_location(file, key),
    )


def _has_debugger(app: Flask) -> bool:
    layer: object = app.wsgi_app
    for _ in range(_MAX_WSGI_LAYERS):
        if qualified_name(type(layer)) == "DebuggedApplication":
            return True
        attributes = own_dict(layer) or {}
        layer = attributes.get("app", attributes.get("wsgi_app"))
    return False


def _is_cookie_path_outside(audited: AuditedTenant) -> bool:
    prefix = audited.tenant.address.root
    path = str(audited.app.config.get("SESSION_COOKIE_PATH") or prefix)
    return not f"{path}/".startswith(f"{prefix}/")


_RULES = (
    _Rule(
        id="debug",
        key="DEBUG",
        is_broken=lambda audited: audited.app.debug,
        text="'DEBUG' is on, so error pages can show code and secrets to clients",
        remedy="remove DEBUG from the tenant file and from endpoints; "
        "for development, use tenantry run NAME -- run --debug",
    ),
    _Rule(
        id="testing",
        key="TESTING",
        is_broken=lambda audited: audited.app.testing,
        text="'TESTING' is on, so exceptions bypass the app's error handlers",
        remedy="remove TESTING from the tenant file and from endpoints",
    ),
    _Rule(
        id="propagate-exceptions",
        key="PROPAGATE_EXCEPTIONS",
        is_broken=lambda audited: audited.app.config.get("PROPAGATE_EXCEPTIONS"),
        text="'PROPAGATE_EXCEPTIONS' is on, so exceptions bypass the app's error handlers",
        remedy="remove PROPAGATE_EXCEPTIONS",
    ),
    _Rule(
        id="debugger",
        key="app.wsgi_app",
        is_broken=lambda audited: _has_debugger(audited.app),
        text="the app is wrapped in Werkzeug's debugger, which runs code that clients type",
        remedy="remove DebuggedApplication",
    ),
    _Rule(
        id="wide-cookie:SESSION_COOKIE_DOMAIN",
        key="SESSION_COOKIE_DOMAIN",
        is_broken=lambda audited: audited.app.config.get("SESSION_COOKIE_DOMAIN"),
        text="the session cookie has a Domain attribute, which the host removes",
        remedy="remove SESSION_COOKIE_DOMAIN",
    ),
    _Rule(
        id="wide-cookie:SESSION_COOKIE_PATH",
        key="SESSION_COOKIE_PATH",
        is_broken=_is_cookie_path_outside,
        text="the path of the session cookie is outside the tenant's URL prefix; the host fixes it",
        remedy="remove SESSION_COOKIE_PATH: the default is the tenant's URL prefix",
    ),
    _Rule(
        id="readable-cookie",
        key="SESSION_COOKIE_HTTPONLY",
        is_broken=lambda audited: not audited.app.config.get("SESSION_COOKIE_HTTPONLY"),
        text="scripts can read the session cookie, including scripts of other tenants under the "
        "same host name",
        remedy="remove SESSION_COOKIE_HTTPONLY: the default is True",
    ),
    _Rule(
        id="cross-site-cookie",
        key="SESSION_COOKIE_SAMESITE",
        is_broken=lambda audited: (
            audited.app.config.get("SESSION_COOKIE_SAMESITE") not in ("Lax", "Strict")
        ),
        text="other sites can send requests with the session cookie",
        remedy="remove SESSION_COOKIE_SAMESITE: the default is Lax",
    ),
)


def _weak_keys(audited: AuditedTenant) -> Iterator[Finding]:
    config = audited.app.config
    keys = {"SECRET_KEY": config["SECRET_KEY"]}
    for number, old_key in enumerate(config["SECRET_KEY_FALLBACKS"] or ()):
        keys[f"SECRET_KEY_FALLBACKS[{number}]"] = old_key
    for key, value in keys.items():
        weakness = _weakness(value.decode("latin-1") if isinstance(value, bytes) else str(value))
        if weakness:
            yield _setting(
                audited,
                id_=finding_id("weak-key", key),
                key=key,
                text=f"{key!r} {weakness}",
                remedy="replace the key: python -c 'import secrets; print(secrets.token_hex(32))'",
            )


def _weakness(secret_key: str) -> str:
    """Return why a secret key is weak; "" for a strong key."""
    try:
        check_secret(secret_key)
    except ValueError as error:
        return str(error).partition(";")[0]
    if len(set(secret_key)) < MIN_DISTINCT_CHARACTERS:
        return f"is easy to guess: it has fewer than {MIN_DISTINCT_CHARACTERS} different characters"
    return ""


def _key_in_file(audited: AuditedTenant, text: str) -> Iterator[Finding]:
    file = audited.tenant.file
    if str(audited.app.config["SECRET_KEY"]) in text and _has_mode(file, _READABLE_BY_OTHERS):
        yield Finding(
            id="key-in-file",
            tenants=(audited.name,),
            text="the tenant file contains SECRET_KEY, and other users of the machine can read it",
            remedy=f'move the key to <data>/secrets and use secret("NAME"), or chmod 600 {file}',
            place=key_location(file, "SECRET_KEY"),
            is_note=True,
        )


def _readable_secrets(
    tenants: Sequence[AuditedTenant], data_dir: Path, texts: Mapping[str, str]
) -> Iterator[Finding]:
    """Yield a finding for each file with a secret that other users of the machine can read.

    The secrets in `<data>/secrets` are always checked. Other secrets are checked only if a tenant
    file names them.
    """
    for name, path in _secret_files(data_dir):
        word = re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])")
        users = [audited for audited in tenants if word.search(texts[audited.name])]
        is_own = path.parent == data_dir / "secrets"
        if not _has_mode(path, _READABLE_BY_OTHERS) or not (users or is_own):
            continue
        # Docker mounts secrets with mode 0444, but a container usually has no other users.
        is_note = path.parent == Path(secrets.CONTAINER_SECRETS)
        yield Finding(
            id=finding_id("readable-secret", name),
            tenants=tuple(audited.name for audited in users),
            text=f"other users of this machine can read {path}",
            remedy="mount the secret with mode 0400" if is_note else f"chmod 600 {path}",
            paths=tuple(
                f"{audited.name}: {audited.tenant.file} → secret({name!r}) → {path}"
                for audited in users[:2]
            ),
            place=str(path),
            is_note=is_note,
        )


def _secret_files(data_dir: Path) -> Iterator[tuple[str, Path]]:
    """Yield each secret's name and file, unless the folder keeps other users out."""
    for variable, file in os.environ.items():
        if variable.endswith("_FILE"):
            yield variable.removesuffix("_FILE"), Path(file)
    folders = [data_dir / "secrets", Path(secrets.CONTAINER_SECRETS)]
    if mounted := os.environ.get("CREDENTIALS_DIRECTORY"):
        folders.append(Path(mounted))
    for folder in folders:
        if _has_mode(folder, _SEARCHABLE_BY_OTHERS):
            with suppress(OSError):  # this process may not list the folder
                yield from ((path.name, path) for path in sorted(folder.iterdir()))


def _has_mode(path: str | Path, mode: int) -> bool:
    try:
        return bool(Path(path).stat().st_mode & mode)
    except OSError:  # the file does not exist or is not accessible
        return False


def _read_text(file: str) -> str:
    try:
        return Path(file).read_text("utf-8", "replace")
    except OSError:  # the tenant has no file
        return ""


def _public_access(audited: AuditedTenant, *, has_trusted_hosts: bool) -> Iterator[Finding]:
    if not (has_trusted_hosts or audited.tenant.trusted_hosts or audited.tenant.hosts):
        yield Finding(
            id="trusted-hosts-missing",
            tenants=(audited.name,),
            text="the tenant answers requests with any Host header",
            remedy="set TENANTRY_TRUSTED_HOSTS, or 'TRUSTED_HOSTS' in the tenant file, if the "
            "host is reachable from the internet",
            place=audited.tenant.file,
            is_note=True,
        )
    if not (audited.tenant.clients or audited.tenant.oidc):
        yield Finding(
            id="open",
            tenants=(audited.name,),
            text="anyone can call the tenant: neither 'CLIENTS' nor 'OIDC' is set",
            remedy="to admit only known clients, create a key: tenantry key NAME CLIENT",
            place=audited.tenant.file,
            is_note=True,
        )


def _one_process(tenants: Sequence[AuditedTenant]) -> Finding:
    return Finding(
        id="one-process",
        tenants=tuple(audited.name for audited in tenants),
        text="the tenants share one process: the code of one tenant can read the secrets of the "
        "others and use up their CPU time",
        remedy="to separate a tenant, serve it in a process of its own: tenantry serve --only NAME",
        is_note=True,
    )


def _one_origin(
    tenants: Sequence[AuditedTenant], trusted_hosts: Sequence[str]
) -> Iterator[Finding]:
    """Yield a note with the tenants that share a host name."""
    own = {one.name: one.tenant.hosts for one in tenants if one.tenant.hosts}
    trusted = {
        one.name: one.tenant.trusted_hosts or trusted_hosts
        for one in tenants
        if not one.tenant.hosts
    }
    names = tuple(
        name
        for hosts in (trusted, own)
        for name, first in hosts.items()
        if any(_share_host(first, second) for other, second in hosts.items() if other != name)
    )
    if names:
        yield Finding(
            id="one-origin",
            tenants=names,
            text="the tenants share a host name, which is one origin for browsers: a script of one "
            "tenant can read pages of the others with the visitor's cookies",
            remedy="if the tenants do not trust each other, give each tenant its own 'HOSTS'",
            is_note=True,
        )


def _share_host(own: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists of trusted hosts have a name in common.

    An empty list means any host name.
    """
    if not own or not others:
        return True
    return any(_overlap(name.lower(), other.lower()) for name in own for other in others)


def _overlap(first: str, second: str) -> bool:
    """Whether one host name can match both patterns.

    The pattern `.a.org` matches `a.org` and all subdomains of `a.org`.
    """
    return (
        first == second
        or (first.startswith(".") and f".{second.lstrip('.')}".endswith(first))
        or (second.startswith(".") and f".{first.lstrip('.')}".endswith(second))
    )
