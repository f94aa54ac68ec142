"""What in one tenant's configuration is unsafe where strangers reach it.

And what no configuration gives the tenants of one process, as notes.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from flask import Flask

from tenantry.audit.comparison import line_of_key
from tenantry.audit.finding import Audited, Finding, stable_id
from tenantry.tenants import secrets
from tenantry.tenants.fields import check_secret

FEWEST_CHARACTERS = 8
"""Different ones in a key: 32 random hexadecimal digits have fewer once in 30 million keys."""

_READABLE_BY_OTHERS = stat.S_IRGRP | stat.S_IROTH
_OPEN_TO_OTHERS = stat.S_IXGRP | stat.S_IXOTH
"""Of a folder: who knows the name of a file in it comes to the file."""
_SECRET_CALL = re.compile(r"""\bsecret\(\s*["']([A-Za-z0-9_.-]+)["']""")


def check_settings(
    audited: Sequence[Audited], data_dir: Path, hosts: Sequence[str]
) -> Iterator[Finding]:
    """Yield what is unsafe, tenant by tenant; what may be right as it is, as a note.

    Args:
        audited: the tenants.
        data_dir: where their secrets may be.
        hosts: the names that the host answers for; any, where there are none.
    """
    readable = _readable_files(data_dir / "secrets")
    for one in audited:
        yield from _shows_its_inside(one)
        yield from _weak_keys(one)
        yield from _cookies(one)
        yield from _readable_secrets(one, readable)
        yield from _notes(one, has_trusted_hosts=bool(hosts))
    named = {name for one in audited for name in _named_in(_text_of(one), readable)}
    for name in sorted(readable.keys() - named):
        yield _readable_secret(readable[name], name, None)
    yield from _one_process(audited, hosts)


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


def _readable_files(folder: Path) -> dict[str, Path]:
    """Return the files of secrets that other users of the machine can read, by name."""
    try:
        found = sorted(folder.iterdir()) if _is_open(folder) else []
    except OSError:
        return {}
    return {path.name: path for path in found if _is_readable(path)}


def _readable_secrets(one: Audited, readable: Mapping[str, Path]) -> Iterator[Finding]:
    """Yield the files of this tenant's secrets that other users of the machine can read."""
    text = _text_of(one)
    for name in dict.fromkeys([*_SECRET_CALL.findall(text), *_named_in(text, readable)]):
        path = next((path for path in _mounted(name) if path.is_file()), readable.get(name))
        if path is not None and _is_readable(path):
            yield _readable_secret(path, name, one)
    key = str(one.app.config["SECRET_KEY"])
    if key in text and _is_readable(Path(one.tenant.file)):
        yield Finding(
            "key-in-file", (one.name,),
            "SECRET_KEY stands in the tenant file itself, which other users can read",
            f'move it to <data>/secrets and write secret("…"), or chmod 600 {one.tenant.file}',
            place=line_of_key(one.tenant.file, "SECRET_KEY"), is_note=True,
        )  # fmt: skip


def _mounted(name: str) -> Iterator[Path]:
    """Yield where a secret may be instead of `<data>/secrets`, where others may come to it."""
    if named := os.environ.get(f"{name}_FILE"):
        yield Path(named)
    for folder in (os.environ.get("CREDENTIALS_DIRECTORY"), secrets.CONTAINER_SECRETS):
        if folder and _is_open(Path(folder)):
            yield Path(folder, name)


def _text_of(one: Audited) -> str:
    try:
        return Path(one.tenant.file).read_text("utf-8", "replace")
    except OSError:
        return ""


def _named_in(text: str, names: Iterable[str]) -> list[str]:
    return [one for one in names if re.search(rf"(?<![\w.-]){re.escape(one)}(?![\w.-])", text)]


def _readable_secret(path: Path, name: str, one: Audited | None) -> Finding:
    # Docker mounts secrets so, and a container has often no other users.
    is_container = path.parent == Path(secrets.CONTAINER_SECRETS)
    return Finding(
        stable_id("readable-secret", name),
        (one.name,) if one else (),
        f"other users of this machine can read {path}",
        "mount it with mode 0400" if is_container else f"chmod 600 {path}",
        (f"{one.name}: {one.tenant.file} → secret({name!r}) → {path}",) if one else (),
        str(path),
        is_note=is_container,
    )


def _is_open(folder: Path) -> bool:
    try:
        return bool(folder.stat().st_mode & _OPEN_TO_OTHERS)
    except OSError:
        return False


def _is_readable(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & _READABLE_BY_OTHERS)
    except OSError:
        return False


def _one_process(audited: Sequence[Audited], hosts: Sequence[str]) -> Iterator[Finding]:
    """Yield, as notes, what tenants of one process share whatever their files say."""
    if len(audited) > 1:
        yield Finding(
            "one-process", tuple(one.name for one in audited),
            "they share one memory and one interpreter: their code is trusted not to read a "
            "neighbour's secrets, and can take its time",
            "for a wall around one: tenantry serve --only NAME, a process of its own",
            is_note=True,
        )  # fmt: skip
    names = {one.name: one.tenant.trusted_hosts or tuple(hosts) for one in audited}
    alike = [
        name
        for name, own in names.items()
        if any(_is_one_origin(own, others) for other, others in names.items() if other != name)
    ]
    if alike:
        yield Finding(
            "one-origin", tuple(alike),
            "they answer under one host name, which is one origin in browsers: a script of one "
            "can read the others' pages with the visitor's cookies",
            "give each TRUSTED_HOSTS of its own where clients must not trust each other",
            is_note=True,
        )  # fmt: skip


def _is_one_origin(own: Sequence[str], others: Sequence[str]) -> bool:
    """Whether some host name is answered by both; without names any is."""
    if not own or not others:
        return True
    return any(_meet(one.lower(), other.lower()) for one in own for other in others)


def _meet(one: str, other: str) -> bool:
    """Whether some name fits both; `.a.org` fits `a.org` and all below it."""
    if one.startswith(".") and f".{other.lstrip('.')}".endswith(one):
        return True
    return one == other or (other.startswith(".") and f".{one.lstrip('.')}".endswith(other))


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
