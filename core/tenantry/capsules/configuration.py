"""Selects the keys of a tenant file for a capsule, and writes the tenant file of a restore."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tenantry.observability.redaction import SIGNING_KEYS, redact_value

EXCLUDED_KEYS = (*SIGNING_KEYS, "DATABASE_URI", "DATABASE_OPTIONS", "APP_DIR")
"""Keys that are never in a capsule, because a restored tenant gets a new key and a new database."""

SHOWN_CHARS = 2000
"""Maximum number of characters of a value that a command shows before a restore."""

ACCESS_KEYS = ("CLIENTS", "OIDC")
"""Keys that restrict access. A tenant that has neither key admits every client."""


def without_secrets(
    values: Mapping[str, Any], secrets: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """Split the keys of a tenant file: return those without a secret, and the names of the rest.

    Args:
        values: maps each key of the tenant file to its value.
        secrets: texts that a capsule must not contain.
    """
    texts = [text for text in secrets if text]
    config: dict[str, Any] = {}
    secret_keys = []
    for key, value in values.items():
        if key in EXCLUDED_KEYS:
            continue
        if redact_value(key, value, texts) == value:
            config[key] = value
        else:
            secret_keys.append(key)
    return config, sorted(secret_keys)


def describe_access(config: Mapping[str, Any], secret_keys: Sequence[str]) -> list[str]:
    """Describe who can use a restored tenant, with one line for each kind of access.

    Args:
        config: maps each key in the capsule to a value that is not validated yet.
        secret_keys: keys that the capsule omits.
    """
    lines = []
    if clients := config.get("CLIENTS"):
        shown = list(clients) if isinstance(clients, Mapping) else clients
        lines.append(f"'CLIENTS' admits {_shown(shown)}")
    if isinstance(openid := config.get("OIDC"), Mapping):
        fields = {key: openid.get(key) for key in ("issuer", "audience", "claims")}
        lines.append(f"'OIDC' admits tokens of {_shown(fields)}")
    lost = [key for key in secret_keys if key in ACCESS_KEYS]
    lines += [
        f"{key!r} is not in the capsule; until you set it, nobody is admitted" for key in lost
    ]
    return lines or ["neither 'CLIENTS' nor 'OIDC' is set: everybody is admitted"]


def _shown(value: object) -> str:
    """Return a value from a capsule as text that is safe to print on a terminal."""
    return ascii(value)[:SHOWN_CHARS]


def check_key(text: object) -> str:
    """Return `text` if it is a valid key of a tenant file.

    Raises:
        ValueError: the text is not an upper-case name, or Python would normalize it to another
            name.
    """
    is_key = isinstance(text, str) and text.isidentifier() and text.isupper()
    if not is_key or unicodedata.normalize("NFKC", str(text)) != text:
        raise ValueError(f"{text!r} is not a key of a tenant file")
    return text


def render_tenant_file(
    name: str,
    config: Mapping[str, Any],
    *,
    expressions: Mapping[str, str],
    secret_keys: Sequence[str],
) -> str:
    """Return the text of the tenant file of a restored tenant.

    If the capsule lacks a key of `ACCESS_KEYS`, the tenant would admit every client. Therefore, the
    restored tenant file disables the tenant until an operator sets the missing key.

    Args:
        name: the tenant's name.
        config: maps each key in the capsule to its value, which is plain data.
        expressions: maps additional keys to Python expressions.
        secret_keys: keys that the capsule omits. For each omitted key, the tenant file gets a
            comment that asks the operator to set the key.
    """
    lost_access_keys = [key for key in secret_keys if key in ACCESS_KEYS]
    keys = [f"{key} = {expression}" for key, expression in expressions.items()]
    keys += [
        f"{key} = {value!r}"
        for key, value in config.items()
        if not (lost_access_keys and key == "ENABLED")
    ]
    keys += [f"# {key} is secret and not part of a capsule: set it again." for key in secret_keys]
    if lost_access_keys:
        keys.append(f"ENABLED = False  # without {' and '.join(lost_access_keys)}, it is open")
    imports = [line for line, name in _IMPORTS.items() if any(map(name.search, keys))]
    blocks = [[f'"""Tenant {name}, restored from a capsule."""'], imports, [_SECRET_IMPORT], keys]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


_SECRET_IMPORT = "from tenantry import secret"  # noqa: S105 - a line of code, not a password

_IMPORTS = {
    "import datetime": re.compile(r"\bdatetime\."),
    "from decimal import Decimal": re.compile(r"\bDecimal\("),
    "from math import inf, nan": re.compile(r"\b(inf|nan)\b"),
    "from pathlib import PosixPath": re.compile(r"\bPosixPath\("),
}
"""Maps each import line to a pattern of the `repr` values that need the import.

If a word inside a string matches, the tenant file gets an unused import, which is harmless.
"""
