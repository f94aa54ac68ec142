"""A tenant's configuration for capsules: without secrets, and as a tenant file again."""

import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from tenantry.observability.redaction import redact_value

NOT_TAKEN = ("SECRET_KEY", "SECRET_KEY_FALLBACKS", "DATABASE_URI")
"""Each tenant has its own; a restored one gets new ones."""

GUARDS = ("CLIENTS", "OIDC")
"""Without these a tenant is open to everybody."""


def without_secrets(
    values: Mapping[str, Any], secrets: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the keys of a tenant file that hold no secret, and the names of those that do.

    Args:
        values: what the file says.
        secrets: further texts that no capsule may hold.
    """
    known = [one for one in secrets if one]
    kept = {key: value for key, value in values.items() if key not in NOT_TAKEN}
    secret = [key for key, value in kept.items() if redact_value(key, value, known) != value]
    return {key: value for key, value in kept.items() if key not in secret}, sorted(secret)


def check_key(text: object) -> str:
    """Return a key of a tenant file.

    Raises:
        ValueError: it can be none, or would be another one to Python.
    """
    is_key = isinstance(text, str) and text.isidentifier() and text.isupper()
    if not is_key or unicodedata.normalize("NFKC", str(text)) != text:
        raise ValueError(f"{text!r} is no key of a tenant file")
    return text


def render_tenant_file(
    name: str, config: Mapping[str, Any], own: Mapping[str, str], secret_keys: Sequence[str]
) -> str:
    """Return the file of a restored tenant.

    Args:
        name: the tenant's.
        config: what the capsule says: plain data by good keys.
        own: key → what Python shall compute: what a tenant has for itself.
        secret_keys: those that were left out, for the operator to write again.
    """
    guards = [key for key in secret_keys if key in GUARDS]
    taken = {key: value for key, value in config.items() if not (guards and key == "ENABLED")}
    body = [f"{key} = {python_literal(value)}" for key, value in taken.items()]
    imports = [line for line, word in _IMPORTS.items() if any(word in one for one in body)]
    lines = [
        f'"""Tenant {name}, restored from a capsule."""',
        "",
        *imports,
        *([""] if imports else []),
    ]
    lines += ["from tenantry import secret", "", *(f"{key} = {text}" for key, text in own.items())]
    lines += body
    lines += [f"# {key} is secret and was in no capsule: write it again." for key in secret_keys]
    if guards:
        lines.append(f"ENABLED = False  # without {' and '.join(guards)} it would be open")
    return "\n".join(lines) + "\n"


_IMPORTS = {
    "from datetime import datetime": "datetime.fromisoformat(",
    "from datetime import timedelta": "timedelta(",
    "from decimal import Decimal": "Decimal(",
    "from pathlib import Path": "Path(",
}
"""What a tenant file imports where a word stands in it."""


def python_literal(value: Any) -> str:
    """Return Python's text of plain data.

    Raises:
        TypeError: it is no plain data.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, dict):
        pairs = (f"{python_literal(key)}: {python_literal(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple | set):
        opening, closing = _BRACKETS[type(value)]
        items = ", ".join(map(python_literal, value))
        return f"{opening}{items}{',' * (closing == ')' and len(value) == 1)}{closing}"
    for kind, write in _OBJECTS.items():
        if isinstance(value, kind):
            return write(value)
    raise TypeError(f"no plain data: {type(value).__name__}")


_BRACKETS = {list: ("[", "]"), tuple: ("(", ")"), set: ("set([", "])")}

_OBJECTS: dict[type, Callable[[Any], str]] = {
    datetime: lambda one: f"datetime.fromisoformat({one.isoformat()!r})",
    timedelta: lambda one: f"timedelta({one.days}, {one.seconds}, {one.microseconds})",
    Decimal: lambda one: f"Decimal({str(one)!r})",
    Path: lambda one: f"Path({str(one)!r})",
}
