"""Plain data as JSON without loss, for the rows and the configuration in a capsule.

`tenants.plain_data` defines the form of a value. Here, decoding is also bounded, because a capsule
can come from anywhere.
"""

import json
import re
from typing import Any

from tenantry.tenants.plain_data import tag, untag

STRUCTURE_LIMIT_BYTES = 1 << 20
"""Limit of what a value has outside its strings: there, three bytes can become a list of 60."""

_STRINGS = re.compile(rb'"[^"]*"')


def dump_value(value: Any) -> str:
    """Return a value as one line of JSON.

    Raises:
        TypeError: it is not plain data.
    """
    try:
        tagged = tag(value)
    except TypeError as error:
        raise TypeError(f"not plain data: {error}") from error
    return json.dumps(tagged, separators=(",", ":"), allow_nan=False)


def load_value(text: bytes) -> Any:
    """Return the value that `dump_value` wrote.

    Raises:
        ValueError: `dump_value` writes nothing like this, or decoding would take far more memory
            than the text.
    """
    check_structure(text)
    try:
        return untag(json.loads(text.decode("ascii")))
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"not a value of a capsule ({type(error).__name__})") from error


def check_structure(text: bytes) -> None:
    """Check that decoding JSON takes at most a few times the memory of its strings.

    Raises:
        ValueError: it would take more.
    """
    if len(text) > STRUCTURE_LIMIT_BYTES:
        unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"")
        in_strings = sum(match.end() - match.start() for match in _STRINGS.finditer(unescaped))
        if len(unescaped) - in_strings > STRUCTURE_LIMIT_BYTES:
            limit = f"{STRUCTURE_LIMIT_BYTES >> 20} MiB"
            raise ValueError(f"it has more than {limit} outside strings")
