"""What single values of a tenant file must be: names, prefixes, secrets, host names, rates.

Each check returns the value, or raises a ValueError whose text says what is expected and what to
do; it never holds a secret.
"""

import re

SECRET_KEY_CHARACTERS = 32
"""32 characters of hexadecimal are 128 bits, what HMAC-SHA1 (Flask's session signer) can use."""

_MAKE_ONE = "make one: python -c 'import secrets; print(secrets.token_hex(32))'"

_WELL_KNOWN_SECRETS = frozenset({
    "secret!", "secret", "secretkey", "secret_key", "secret-key", "changeme", "change-me",
    "change_me", "dev", "development", "test", "testing", "password", "default", "key", "mykey",
    "you-will-never-guess", "super-secret", "supersecret", "top-secret", "hard to guess string",
    # the examples of Flask's documentation
    "192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",
    '_5#y2l"f4q8z\\n\\xec]/',
})  # fmt: skip

_RATE = r"\s*[1-9][0-9]{0,11}\s*(?:/|per)\s*(?:[1-9][0-9]{0,5})?\s*(?:second|minute|hour|day|month|year)s?\s*"  # noqa: E501 - one notation
_RATES = re.compile(rf"{_RATE}(?:[,;|]{_RATE})*", re.IGNORECASE)
"""The notation of the `limits` library (`limits.util.EXPR`), without rates of nothing."""


def check_secret(value: str) -> str:
    """Return a key that signs sessions."""
    if value.strip().lower() in _WELL_KNOWN_SECRETS:
        raise ValueError(f"is a well-known secret; {_MAKE_ONE}")
    if len(value) < SECRET_KEY_CHARACTERS:
        raise ValueError(
            f"has {len(value)} characters, expected at least {SECRET_KEY_CHARACTERS}; {_MAKE_ONE}"
        )
    return value


def check_rate_limit(value: str) -> str:
    """Return one rate, or several, in the notation of the `limits` library."""
    if not _RATES.fullmatch(value):
        raise ValueError(
            "expected a rate like '100/minute', '5 per 2 seconds' or '10/second; 1000/day', "
            "in seconds, minutes, hours, days, months or years"
        )
    return value


def check_maintenance(value: object) -> object:
    """Return True, False or a message."""
    if not isinstance(value, bool | str):
        raise ValueError("expected True, False or a message for the clients")  # noqa: TRY004 - pydantic's
    return value
