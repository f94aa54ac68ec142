"""Values of rows and of configurations as JSON, exact both ways; reading makes plain data only."""

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

FORM_LIMIT_BYTES = 1 << 20
"""How much of one value may stand outside its texts: there, three bytes can cost a list of 60."""

_TEXTS = re.compile(rb'"[^"]*"')


def dump_value(value: Any) -> str:
    """Return a value as one line of JSON.

    Raises:
        TypeError: it is no plain data.
    """
    return json.dumps(_tag(value), separators=(",", ":"), allow_nan=False)


def load_value(text: bytes) -> Any:
    """Return the value that `dump_value` wrote.

    Raises:
        ValueError: it did not write this, or it would take far more memory than its text.
    """
    check_form(text)
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
        raise ValueError(f"no value of a capsule ({type(error).__name__})") from error


def check_form(text: bytes) -> None:
    """Check that JSON can be read in a few times the memory of its texts.

    Raises:
        ValueError: it can not.
    """
    if len(text) > FORM_LIMIT_BYTES:
        plain = text.replace(rb"\\", b"").replace(rb"\"", b"")
        in_texts = sum(one.end() - one.start() for one in _TEXTS.finditer(plain))
        if len(plain) - in_texts > FORM_LIMIT_BYTES:
            raise ValueError(f"more than {FORM_LIMIT_BYTES >> 20} MiB of it are no texts")


def _tag(value: Any) -> Any:
    """Turn plain data into JSON: scalars and lists stay, the rest becomes `{tag: content}`."""
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
    for known, (name, write, _) in _KINDS.items():
        if isinstance(value, known):
            return {name: write(value)}
    raise TypeError(f"no plain data: {kind.__name__}")


def _untag(value: Any) -> Any:
    if isinstance(value, list):
        return [_untag(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    return _READERS[name](content)


_KINDS: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    bytes: ("bytes", lambda one: base64.b64encode(one).decode(), base64.b64decode),
    uuid.UUID: ("uuid", str, uuid.UUID),
    Decimal: ("decimal", str, Decimal),
    datetime: ("datetime", datetime.isoformat, datetime.fromisoformat),  # before date: it is one
    date: ("date", date.isoformat, date.fromisoformat),
    time: ("time", time.isoformat, time.fromisoformat),
    timedelta: (
        "timedelta",
        lambda one: [one.days, one.seconds, one.microseconds],
        lambda parts: timedelta(*parts),
    ),
    PurePath: ("path", str, Path),
}

_READERS: dict[str, Callable[[Any], Any]] = {name: read for name, _, read in _KINDS.values()} | {
    "float": float,
    "tuple": lambda items: tuple(_untag(item) for item in items),
    "set": lambda items: {_untag(item) for item in items},
    "dict": lambda pairs: {_untag(key): _untag(item) for key, item in pairs},
}
