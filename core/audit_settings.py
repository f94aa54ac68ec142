"""What in one tenant's configuration is unsafe where strangers reach it."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from flask import Flask

from core.audit_compare import line_of_key
from core.audit_finding import Audited, Finding, stable_id
from core.tenant_values import check_secret

FEWEST_CHARACTERS = 8
"""Different ones in a key: 32 random hexadecimal digits have fewer once in 30 million keys."""

_READABLE_BY_OTHERS = stat.S_IRGRP | stat.S_IROTH
_SECRET_CALL = re.compile(r"""\bsecret\(\s*["']([A-Za-z0-9_.-]+)["']""")


def check_settings(
    audited: Sequence[Audited], data_dir: Path, *, has_trusted_hosts: bool
) -> Iterator[Finding]:
    """Yield what is unsafe, tenant by tenant; what may be right as it is, as a note.

    Args:
        audited: the tenants.
        data_dir: where their secrets may be.
        has_trusted_hosts: whether the host answers for listed names only.
    """
    for one in audited:
        yield from _shows_its_inside(one)
        yield from _weak_keys(one)
        yield from _cookies(one)
        yield from _readable_secrets(one, data_dir)
        yield from _notes(one, has_trusted_hosts=has_trusted_hosts)


def _found(one: Audited, id_: str, key: str, text: str, remedy: str) -> Finding:
    file = one.tenant.file
    way = (f"{one.name}: {file} → {key}",)
    return Finding(id_, (one.name,), text, remedy, way, line_of_key(file, key))


def _shows_its_inside(one: Audited) -> Iterator[Finding]:
    app = one.app
    for key, is_on in (("DEBUG", app.debug), ("TESTING", app.testing)):
        if is_on:
            yield _found(
                one, key.lower(), key, f"{key} is on: it shows the code and its secrets to clients",
                f"remove it, also from the endpoints; for development: tenantry run {one.name} "
                "-- run --debug",
            )  # fmt: skip
    if app.config.get("PROPAGATE_EXCEPTIONS"):
        yield _found(
            one, "propagate-exceptions", "PROPAGATE_EXCEPTIONS",
            "exceptions leave the app, past its error handlers, to any debugger around it",
            "remove PROPAGATE_EXCEPTIONS",
        )  # fmt: skip
    if _has_debugger(app):
        yield _found(
            one, "debugger", "app.wsgi_app", "Werkzeug's debugger runs code that clients type",
            "remove DebuggedApplication",
        )  # fmt: skip


def _has_debugger(app: Flask) -> bool:
    layer: object = app.wsgi_app
    for _ in range(20):  # layers of an app: each holds the next one, most as `app`
        if type(layer).__name__ == "DebuggedApplication":
            return True
        layer = getattr(layer, "app", None) or getattr(layer, "wsgi_app", None)
    return False


def _weak_keys(one: Audited) -> Iterator[Finding]:
    keys = [("SECRET_KEY", one.app.config["SECRET_KEY"])]
    for place, old in enumerate(one.app.config["SECRET_KEY_FALLBACKS"] or ()):
        keys.append((f"SECRET_KEY_FALLBACKS[{place}]", old))
    for key, value in keys:
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        try:
            check_secret(text)
            why = "can be guessed: it has few different characters"
        except ValueError as error:
            why = str(error).partition(";")[0]
        else:
            if len(set(text)) >= FEWEST_CHARACTERS:
                continue
        yield _found(
            one, stable_id("weak-key", key), key, f"{key} {why}",
            "make one: python -c 'import secrets; print(secrets.token_hex(32))'",
        )  # fmt: skip


def _cookies(one: Audited) -> Iterator[Finding]:
    config, prefix = one.app.config, one.tenant.url_prefix
    path = str(config.get("SESSION_COOKIE_PATH") or prefix)
    if config.get("SESSION_COOKIE_DOMAIN"):
        yield _found(
            one, "wide-cookie:SESSION_COOKIE_DOMAIN", "SESSION_COOKIE_DOMAIN",
            "the session cookie is meant for more than this tenant; the host cuts its Domain off",
            "remove SESSION_COOKIE_DOMAIN",
        )  # fmt: skip
    if not f"{path}/".startswith(f"{prefix}/"):
        yield _found(
            one, "wide-cookie:SESSION_COOKIE_PATH", "SESSION_COOKIE_PATH",
            f"the session cookie is meant for {path}, outside of {prefix}; the host cuts it back",
            "remove SESSION_COOKIE_PATH: the path follows the prefix by itself",
        )  # fmt: skip
    if not config.get("SESSION_COOKIE_HTTPONLY"):
        yield _found(
            one, "readable-cookie", "SESSION_COOKIE_HTTPONLY",
            "scripts can read the session cookie, those of the neighbours too: it is one origin",
            "remove SESSION_COOKIE_HTTPONLY",
        )  # fmt: skip
    if config.get("SESSION_COOKIE_SAMESITE") not in ("Lax", "Strict"):
        yield _found(
            one, "cross-site-cookie", "SESSION_COOKIE_SAMESITE",
            "other sites can send requests with the session cookie",
            "remove SESSION_COOKIE_SAMESITE: it is Lax by itself",
        )  # fmt: skip


def _readable_secrets(one: Audited, data_dir: Path) -> Iterator[Finding]:
    """Yield the files of this tenant's secrets that other users of the machine can read."""
    try:
        text = Path(one.tenant.file).read_text("utf-8", "replace")
    except OSError:
        return
    for name in dict.fromkeys(_SECRET_CALL.findall(text)):
        named = os.environ.get(f"{name}_FILE")
        path = Path(named) if named else data_dir / "secrets" / name
        if _is_readable(path) and (named or _is_readable(path.parent)):
            yield Finding(
                stable_id("readable-secret", name),
                (one.name,),
                f"other users of this machine can read {path}",
                f"chmod 600 {path}",
                (f"{one.name}: {one.tenant.file} → secret({name!r}) → {path}",),
                str(path),
            )
    key = str(one.app.config["SECRET_KEY"])
    if key in text and _is_readable(Path(one.tenant.file)):
        yield Finding(
            "key-in-file", (one.name,),
            "SECRET_KEY stands in the tenant file itself, which other users can read",
            f'move it to <data>/secrets and write secret("…"), or chmod 600 {one.tenant.file}',
            place=line_of_key(one.tenant.file, "SECRET_KEY"), is_note=True,
        )  # fmt: skip


def _is_readable(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & _READABLE_BY_OTHERS)
    except OSError:
        return False


def _notes(one: Audited, *, has_trusted_hosts: bool) -> Iterator[Finding]:
    if not (has_trusted_hosts or one.tenant.trusted_hosts):
        yield Finding(
            "trusted-hosts-missing", (one.name,), "any Host header is answered",
            "set TENANTRY_TRUSTED_HOSTS, or TRUSTED_HOSTS in the tenant file, where strangers "
            "reach it",
            place=one.tenant.file, is_note=True,
        )  # fmt: skip
    config = one.app.config
    if not (config.get("CLIENTS") or config.get("OIDC")):
        yield Finding(
            "open", (one.name,), "anybody may call it: neither CLIENTS nor OIDC is set",
            "set CLIENTS where only the group's clients may come in: tenantry key NAME CLIENT",
            place=one.tenant.file, is_note=True,
        )  # fmt: skip
