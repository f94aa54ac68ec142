"""Unsafe settings of each tenant, and, as notes, what tenants of one process always share."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from flask import Flask

from tenantry.audit.finding import AuditedTenant, Finding, finding_id, key_location
from tenantry.tenants import secrets
from tenantry.tenants.fields import check_secret

MIN_DISTINCT_CHARACTERS = 8
"""Of a secret key. 32 random hexadecimal digits have fewer once in 30 million keys."""

_READABLE_BY_OTHERS = stat.S_IRGRP | stat.S_IROTH
_SEARCHABLE_BY_OTHERS = stat.S_IXGRP | stat.S_IXOTH
"""Of a folder: other users can open a file in it whose name they know."""
_MAX_WSGI_LAYERS = 20
_SECRET_CALL = re.compile(r"""\bsecret\(\s*["']([A-Za-z0-9_.-]+)["']""")


def check_settings(
    tenants: Sequence[AuditedTenant], data_dir: Path, trusted_hosts: Sequence[str]
) -> Iterator[Finding]:
    """Yield unsafe settings for each tenant. Those that may be intended are notes.

    Args:
        tenants: built tenants.
        data_dir: the host's `DATA_DIR`, which holds the folder of secrets.
        trusted_hosts: the host's `TRUSTED_HOSTS`; empty means any.
    """
    readable = _files_readable_by_others(data_dir / "secrets")
    used: set[str] = set()
    for audited in tenants:
        text = _text(audited.tenant.file)
        used.update(_words_among(readable, text))
        yield from _debugging(audited)
        yield from _weak_keys(audited)
        yield from _cookies(audited)
        yield from _readable_secrets(audited, text, readable)
        yield from _public_access(audited, has_trusted_hosts=bool(trusted_hosts))
    for name in sorted(readable.keys() - used):
        yield _readable_secret(readable[name], name, None)
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


def _debugging(audited: AuditedTenant) -> Iterator[Finding]:
    app = audited.app
    for key, is_on in (("DEBUG", app.debug), ("TESTING", app.testing)):
        if is_on:
            yield _setting(
                audited,
                id_=key.lower(),
                key=key,
                text=f"{key!r} is on: error pages can show code and secrets to clients",
                remedy="remove it from the tenant file and from endpoints; for development, use "
                f"tenantry run {audited.name} -- run --debug",
            )
    if app.config.get("PROPAGATE_EXCEPTIONS"):
        yield _setting(
            audited,
            id_="propagate-exceptions",
            key="PROPAGATE_EXCEPTIONS",
            text="'PROPAGATE_EXCEPTIONS' is on: exceptions bypass the app's error handlers and "
            "reach any debugger around the app",
            remedy="remove PROPAGATE_EXCEPTIONS",
        )
    if _has_debugger(app):
        yield _setting(
            audited,
            id_="debugger",
            key="app.wsgi_app",
            text="Werkzeug's debugger is around the app; it runs code that clients type",
            remedy="remove DebuggedApplication",
        )


def _has_debugger(app: Flask) -> bool:
    layer: object = app.wsgi_app
    for _ in range(_MAX_WSGI_LAYERS):
        if type(layer).__name__ == "DebuggedApplication":
            return True
        layer = getattr(layer, "app", None) or getattr(layer, "wsgi_app", None)
    return False


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
                remedy="replace it: python -c 'import secrets; print(secrets.token_hex(32))'",
            )


def _weakness(secret_key: str) -> str:
    """Return why a key is weak; empty if it is not."""
    try:
        check_secret(secret_key)
    except ValueError as error:
        return str(error).partition(";")[0]
    if len(set(secret_key)) < MIN_DISTINCT_CHARACTERS:
        return f"can be guessed: it has fewer than {MIN_DISTINCT_CHARACTERS} different characters"
    return ""


def _cookies(audited: AuditedTenant) -> Iterator[Finding]:
    config, prefix = audited.app.config, audited.tenant.url_prefix
    path = str(config.get("SESSION_COOKIE_PATH") or prefix)
    if config.get("SESSION_COOKIE_DOMAIN"):
        yield _setting(
            audited,
            id_="wide-cookie:SESSION_COOKIE_DOMAIN",
            key="SESSION_COOKIE_DOMAIN",
            text="the session cookie asks for a whole domain; the host removes its Domain",
            remedy="remove SESSION_COOKIE_DOMAIN",
        )
    if not f"{path}/".startswith(f"{prefix}/"):
        yield _setting(
            audited,
            id_="wide-cookie:SESSION_COOKIE_PATH",
            key="SESSION_COOKIE_PATH",
            text=f"the session cookie asks for the path {path}, outside {prefix}; the host "
            "restricts it",
            remedy="remove SESSION_COOKIE_PATH: the default is the tenant's prefix",
        )
    if not config.get("SESSION_COOKIE_HTTPONLY"):
        yield _setting(
            audited,
            id_="readable-cookie",
            key="SESSION_COOKIE_HTTPONLY",
            text="scripts can read the session cookie, including scripts of tenants under the "
            "same host name",
            remedy="remove SESSION_COOKIE_HTTPONLY: the default is True",
        )
    if config.get("SESSION_COOKIE_SAMESITE") not in ("Lax", "Strict"):
        yield _setting(
            audited,
            id_="cross-site-cookie",
            key="SESSION_COOKIE_SAMESITE",
            text="other sites can send requests with the session cookie",
            remedy="remove SESSION_COOKIE_SAMESITE: the default is Lax",
        )


def _files_readable_by_others(folder: Path) -> dict[str, Path]:
    """Return the files that other users of the machine can read, by name."""
    try:
        files = sorted(folder.iterdir()) if _is_searchable(folder) else []
    except OSError:
        return {}
    return {path.name: path for path in files if _is_readable(path)}


def _readable_secrets(
    audited: AuditedTenant, text: str, readable: Mapping[str, Path]
) -> Iterator[Finding]:
    """Yield the tenant's secrets that other users of the machine can read.

    Args:
        audited: the tenant.
        text: its file's content.
        readable: files in `<data>/secrets` that other users can read, by name.
    """
    for name in dict.fromkeys([*_SECRET_CALL.findall(text), *_words_among(readable, text)]):
        mounted = next((path for path in _mounted_secrets(name) if path.is_file()), None)
        path = mounted or readable.get(name)
        if path is not None and _is_readable(path):
            yield _readable_secret(path, name, audited)
    file = audited.tenant.file
    if str(audited.app.config["SECRET_KEY"]) in text and _is_readable(Path(file)):
        yield Finding(
            id="key-in-file",
            tenants=(audited.name,),
            text="the tenant file contains SECRET_KEY, and other users of the machine can read it",
            remedy=f'move it to <data>/secrets and write secret("NAME"), or run chmod 600 {file}',
            place=key_location(file, "SECRET_KEY"),
            is_note=True,
        )


def _mounted_secrets(name: str) -> Iterator[Path]:
    """Yield where `secret()` looks before `<data>/secrets`, if other users can reach it."""
    if file := os.environ.get(f"{name}_FILE"):
        yield Path(file)
    for folder in (os.environ.get("CREDENTIALS_DIRECTORY"), secrets.CONTAINER_SECRETS):
        if folder and _is_searchable(Path(folder)):
            yield Path(folder, name)


def _readable_secret(path: Path, name: str, audited: AuditedTenant | None) -> Finding:
    # Docker mounts secrets like this, and a container often has no other users: only a note.
    is_container = path.parent == Path(secrets.CONTAINER_SECRETS)
    reference = f"{audited.name}: {audited.tenant.file} → secret({name!r})" if audited else ""
    return Finding(
        id=finding_id("readable-secret", name),
        tenants=(audited.name,) if audited else (),
        text=f"other users of this machine can read {path}",
        remedy="mount it with mode 0400" if is_container else f"chmod 600 {path}",
        paths=(f"{reference} → {path}",) if audited else (),
        place=str(path),
        is_note=is_container,
    )


def _is_searchable(folder: Path) -> bool:
    return _has_mode(folder, _SEARCHABLE_BY_OTHERS)


def _is_readable(path: Path) -> bool:
    return _has_mode(path, _READABLE_BY_OTHERS)


def _has_mode(path: Path, mode: int) -> bool:
    try:
        return bool(path.stat().st_mode & mode)
    except OSError:
        return False


def _text(file: str) -> str:
    try:
        return Path(file).read_text("utf-8", "replace")
    except OSError:
        return ""


def _words_among(words: Iterable[str], text: str) -> list[str]:
    return [word for word in words if re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w.-])", text)]


def _public_access(audited: AuditedTenant, *, has_trusted_hosts: bool) -> Iterator[Finding]:
    if not (has_trusted_hosts or audited.tenant.trusted_hosts):
        yield Finding(
            id="trusted-hosts-missing",
            tenants=(audited.name,),
            text="requests with any Host header are answered",
            remedy="set TENANTRY_TRUSTED_HOSTS, or 'TRUSTED_HOSTS' in the tenant file, if the "
            "host is reachable from the internet",
            place=audited.tenant.file,
            is_note=True,
        )
    if not (audited.tenant.clients or audited.tenant.oidc):
        yield Finding(
            id="open",
            tenants=(audited.name,),
            text="anybody can call it: neither 'CLIENTS' nor 'OIDC' is set",
            remedy="if only known clients may call it, create a key: tenantry key NAME CLIENT",
            place=audited.tenant.file,
            is_note=True,
        )


def _one_process(tenants: Sequence[AuditedTenant]) -> Finding:
    return Finding(
        id="one-process",
        tenants=tuple(audited.name for audited in tenants),
        text="the tenants share one process: the code of one can read the others' secrets and use "
        "up their processor time",
        remedy="to separate a tenant, serve it alone: tenantry serve --only NAME",
        is_note=True,
    )


def _one_origin(
    tenants: Sequence[AuditedTenant], trusted_hosts: Sequence[str]
) -> Iterator[Finding]:
    """Yield a note that names the tenants that share a host name with another tenant."""
    hosts = {audited.name: audited.tenant.trusted_hosts or trusted_hosts for audited in tenants}
    names = tuple(
        name
        for name, own in hosts.items()
        if any(_share_host(own, others) for other, others in hosts.items() if other != name)
    )
    if names:
        yield Finding(
            id="one-origin",
            tenants=names,
            text="the tenants answer under one host name, which is one origin for browsers: a "
            "script of one tenant can read the others' pages with the visitor's cookies",
            remedy="if their clients do not trust each other, give each tenant its own "
            "'TRUSTED_HOSTS'",
            is_note=True,
        )


def _share_host(own: Sequence[str], others: Sequence[str]) -> bool:
    """Whether both answer under some host name. An empty list means any name."""
    if not own or not others:
        return True
    return any(_overlap(name.lower(), other.lower()) for name in own for other in others)


def _overlap(first: str, second: str) -> bool:
    """Whether a name matches both. `.a.org` matches `a.org` and all names below it."""
    return (
        first == second
        or (first.startswith(".") and f".{second.lstrip('.')}".endswith(first))
        or (second.startswith(".") and f".{first.lstrip('.')}".endswith(second))
    )
