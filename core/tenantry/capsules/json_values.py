"""Converts the rows and the configuration in a capsule to JSON and back, without loss.

The module `tenants.plain_data` defines the JSON form of a value. The function `load_value` limits
the memory for decoding, because a capsule is untrusted input.
"""

import json
import re
from typing import Any

from tenantry.tenants.plain_data import tag, untag

STRUCTURE_LIMIT_BYTES = 1 << 20
"""Maximum size of a value's JSON outside of strings.

Outside of strings, three bytes of JSON can become a list of 60 bytes.
"""

_STRINGS = re.compile(rb'"[^"]*"')


def dump_value(value: Any) -> str:
    """Return a value as one line of JSON.

    Raises:
        TypeError: the value is not plain data.
    """
    try:
        tagged = tag(value)
    except TypeError as error:
        raise TypeError(f"not plain data: {error}") from error
    return json.dumps(tagged, separators=(",", ":"), allow_nan=False)


def load_value(text: bytes) -> Any:
    """Return the value from text that `dump_value` wrote.

    Raises:
        ValueError: `dump_value` cannot have written the text, or decoding the text would take far
            more memory than the text.
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
    """Check that decoding JSON takes at most a few times the memory of the JSON's strings.

    Raises:
        ValueError: decoding the JSON could take more memory.
    """
    if len(text) > STRUCTURE_LIMIT_BYTES:
        unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"")
        in_strings = sum(match.end() - match.start() for match in _STRINGS.finditer(unescaped))
        if len(unescaped) - in_strings > STRUCTURE_LIMIT_BYTES:
            limit = f"{STRUCTURE_LIMIT_BYTES >> 20} MiB"
            raise ValueError(f"it has more than {limit} outside strings")
