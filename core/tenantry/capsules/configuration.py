"""Selects the keys of a tenant file that a capsule holds, and renders a restored tenant file."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tenantry.observability.redaction import SIGNING_KEYS, redact_value

EXCLUDED_KEYS = (*SIGNING_KEYS, "DATABASE_URI")
"""Keys that a capsule never holds, because a restored tenant gets new values for the keys."""

ACCESS_KEYS = ("CLIENTS", "OIDC")
"""Keys without which a tenant admits every client."""


def without_secrets(
    values: Mapping[str, Any], secrets: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the keys of a tenant file without a secret, and the names of the secret keys.

    Args:
        values: key → value of the tenant file.
        secrets: secret texts that a capsule must not hold, in addition to `EXCLUDED_KEYS`.
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


def check_key(text: object) -> str:
    """Return `text` if `text` is a valid key of a tenant file.

    Raises:
        ValueError: the text is not an upper-case name, or Python would read the text as another
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
    """Return the text of a restored tenant's file.

    If the capsule omits a key of `ACCESS_KEYS`, the restored tenant is disabled, because the tenant
    would admit every client.

    Args:
        name: the tenant's name.
        config: key → value from the capsule. The values are plain data.
        expressions: additional key → the Python expression of the value.
        secret_keys: keys that the capsule omits. For each secret key, a comment in the tenant file
            tells the operator to set the key.
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


_SECRET_IMPORT = "from tenantry import secret"  # noqa: S105 - an import line

_IMPORTS = {
    "import datetime": re.compile(r"\bdatetime\."),
    "from decimal import Decimal": re.compile(r"\bDecimal\("),
    "from math import inf, nan": re.compile(r"\b(inf|nan)\b"),
    "from pathlib import PosixPath": re.compile(r"\bPosixPath\("),
}
"""Import line → the pattern in the `repr` of plain data that needs the import.

A word inside a string can match and add an unused import.
"""
