"""Plain data as JSON without loss, for the rows and the configuration in a capsule.

Scalars and lists stay as they are; any other value becomes `{tag: content}`. Decoding creates
plain data only.
"""

import base64
import json
import math
import re
import uuid
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Any

STRUCTURE_LIMIT_BYTES = 1 << 20
"""Limit of what a value has outside its strings: there, three bytes can become a list of 60."""

_STRINGS = re.compile(rb'"[^"]*"')


def dump_value(value: Any) -> str:
    """Return a value as one line of JSON.

    Raises:
        TypeError: it is not plain data.
    """
    return json.dumps(_tag(value), separators=(",", ":"), allow_nan=False)


def load_value(text: bytes) -> Any:
    """Return the value that `dump_value` wrote.

    Raises:
        ValueError: `dump_value` writes nothing like this, or decoding would take far more memory
            than the text.
    """
    check_structure(text)
    try:
        return _untag(json.loads(text.decode("ascii")))
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


def _tag(value: Any) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if kind is list:
        return [_tag(item) for item in value]
    if kind in (tuple, set):
        return {kind.__name__: [_tag(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_tag(key), _tag(item)] for key, item in value.items()]}
    for tagged, (tag, write, _) in _TYPES.items():
        if isinstance(value, tagged):
            return {tag: write(value)}
    raise TypeError(f"not plain data: {kind.__name__}")


def _untag(value: Any) -> Any:
    if isinstance(value, list):
        return [_untag(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    return _READERS[tag](content)


_TYPES: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    bytes: ("bytes", lambda value: base64.b64encode(value).decode(), base64.b64decode),
    uuid.UUID: ("uuid", str, uuid.UUID),
    Decimal: ("decimal", str, Decimal),
    datetime: ("datetime", datetime.isoformat, datetime.fromisoformat),  # a subclass of date
    date: ("date", date.isoformat, date.fromisoformat),
    time: ("time", time.isoformat, time.fromisoformat),
    timedelta: (
        "timedelta",
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda content: timedelta(*content),
    ),
    PurePath: ("path", str, Path),
}
"""Tag, writer and reader, by type."""

_READERS: dict[str, Callable[[Any], Any]] = {tag: read for tag, _, read in _TYPES.values()} | {
    "float": float,
    "tuple": lambda items: tuple(_untag(item) for item in items),
    "set": lambda items: {_untag(item) for item in items},
    "dict": lambda pairs: {_untag(key): _untag(item) for key, item in pairs},
}
