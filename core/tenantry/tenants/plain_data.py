"""Converts plain data to JSON and back without loss, for values of tenant files and capsule rows.

JSON has no tuples, sets, dates or exact decimals. `tag` converts a value of these types to an
object whose only key names the value's type: `{"tuple": [1, 2]}`. `untag` creates only plain data,
even from JSON of unknown origin.

The loader process imports this module and must start fast. Therefore `tag` recognizes types by
name, and `untag` imports `datetime`, `decimal`, `pathlib` and `uuid`, which take 20 ms, on first
use.
"""

from __future__ import annotations

import functools
import math
from binascii import a2b_base64, b2a_base64

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing `typing` would take a third of the loader process's start time
    from collections.abc import Callable, Collection
    from typing import Any

DEPTH_LIMIT = 200
"""Maximum nesting of containers in plain data. A dict needs three levels of JSON, and Python can
read about 1,000 levels."""

INT_LIMIT_BITS = 14_000
"""Maximum size of an integer in bits, slightly less than the 4,300 digits that Python converts to
text."""

_WRITERS: dict[str, Callable[[Any], object]] = {
    "bytes": lambda value: b2a_base64(value, newline=False).decode(),
    "date": lambda value: value.isoformat(),
    "datetime": lambda value: value.isoformat(),
    "decimal": str,
    "path": str,
    "time": lambda value: value.isoformat(),
    "timedelta": lambda value: [value.days, value.seconds, value.microseconds],
    "uuid": str,
}

_TAGS = {
    "builtins.bytes": "bytes",
    "datetime.date": "date",
    "datetime.datetime": "datetime",
    "datetime.time": "time",
    "datetime.timedelta": "timedelta",
    "decimal.Decimal": "decimal",
    "pathlib.PosixPath": "path",
    "pathlib._local.PosixPath": "path",  # name of the class `PosixPath` in Python 3.13
    "uuid.UUID": "uuid",
}

SCALAR_TAGS = frozenset(_WRITERS)
"""The names of the tagged types that are not containers."""


def tag(
    value: Any, scalars: Collection[str] = SCALAR_TAGS, depth_limit: int = DEPTH_LIMIT
) -> object:
    """Return plain data in a form that JSON can hold.

    Args:
        value: the data.
        scalars: the types in `SCALAR_TAGS` that the data may contain.
        depth_limit: maximum nesting of containers.

    Raises:
        TypeError: the value is not plain data. The message is the type of the value, or the reason.
    """
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if kind is int:
        if value.bit_length() > INT_LIMIT_BITS:
            raise TypeError("an int of over 4,000 digits")
        return value
    if kind not in (list, tuple, set, dict):
        return _tag_scalar(value, scalars)
    if depth_limit == 0:
        raise TypeError("data that is nested too deeply or contains itself")
    pairs_or_items = map(list, value.items()) if kind is dict else value
    # Each pair of a dict is a nested list in JSON.
    depth = depth_limit if kind is dict else depth_limit - 1
    tagged = [tag(item, scalars, depth) for item in pairs_or_items]
    return tagged if kind is list else {kind.__name__: tagged}


def _tag_scalar(value: Any, scalars: Collection[str]) -> object:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    name = _TAGS.get(kind, "")
    if name not in scalars:
        raise TypeError(kind.removeprefix("builtins."))
    return {name: _WRITERS[name](value)}


def untag(value: Any) -> Any:
    """Return the data that was passed to `tag`.

    Raises:
        Exception: the value does not come from `tag`; the exception can have any type.
    """
    if isinstance(value, list):
        return [untag(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    return _readers()[name](content)


@functools.cache
def _readers() -> dict[str, Callable[[Any], Any]]:
    import datetime as dt  # noqa: PLC0415 - see the module's docstring
    import decimal  # noqa: PLC0415
    import pathlib  # noqa: PLC0415
    import uuid  # noqa: PLC0415

    return {
        "bytes": a2b_base64,
        "date": dt.date.fromisoformat,
        "datetime": dt.datetime.fromisoformat,
        "decimal": decimal.Decimal,
        "dict": lambda pairs: {untag(key): untag(item) for key, item in pairs},
        "float": float,
        "path": pathlib.Path,
        "set": lambda items: {untag(item) for item in items},
        "time": dt.time.fromisoformat,
        "timedelta": lambda parts: dt.timedelta(*parts),
        "tuple": lambda items: tuple(untag(item) for item in items),
        "uuid": uuid.UUID,
    }
