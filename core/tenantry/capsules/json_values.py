"""Converts the rows and the configuration of a tenant to JSON and back, without loss.

The module `tenants.plain_data` defines the JSON form of each type. A capsule is untrusted input, so
`load_value` limits the memory for decoding.
"""

import json
import re
from typing import Any

from tenantry.tenants.plain_data import tag, untag

STRUCTURE_LIMIT_BYTES = 1 << 20
"""Maximum size of the JSON outside of strings, in bytes.

Outside of strings, three bytes of JSON can become a list of 60 bytes in memory.
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
    """Return the value that `dump_value` converted to `text`.

    Raises:
        ValueError: the text is not from `dump_value`, or decoding would take too much memory.
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
    """Check that decoding a JSON text takes little more memory than the strings in the text.

    Raises:
        ValueError: decoding the text could take far more memory.
    """
    if len(text) > STRUCTURE_LIMIT_BYTES:
        unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"")
        in_strings = sum(match.end() - match.start() for match in _STRINGS.finditer(unescaped))
        if len(unescaped) - in_strings > STRUCTURE_LIMIT_BYTES:
            limit = f"{STRUCTURE_LIMIT_BYTES >> 20} MiB"
            raise ValueError(f"the value has more than {limit} outside of strings")
