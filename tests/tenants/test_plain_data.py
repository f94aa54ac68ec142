"""Plain data survives JSON without loss."""

import json
import uuid
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from tenantry.tenants.plain_data import DEPTH_LIMIT, SCALAR_TAGS, tag, untag


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(1 << 70),
        0.1,
        float("-inf"),
        float("nan"),
        "\ud800é\0",
        b"\0\xff",
        Decimal("1.10"),
        Decimal("NaN"),
        date.max,
        time(1, 2, 3, 4),
        datetime(2026, 2, 3, 4, 5, 6, 7, UTC),
        timedelta(-1, 2, 3),
        uuid.UUID(int=1),
        Path("/srv/../a b"),
        [1, [2]],
        (1, (2,)),
        {1, "a", (2, 3)},
        {"a": 1, ("b",): None, 3: {}},
    ],
)
def test_a_value_survives_json(value: Any) -> None:
    """Each plain type comes back from JSON with the same value and the same type."""
    assert repr(value) == repr(untag(json.loads(json.dumps(tag(value), allow_nan=False))))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (object(), "object"),
        (print, "builtin_function_or_method"),
        (PurePosixPath("a"), f"{PurePosixPath.__module__}.PurePosixPath"),
        (type("Text", (str,), {})("a"), f"{__name__}.Text"),
        pytest.param(10**5000, "an int of over 4,000 digits", id="huge"),
        ({"a": [object()]}, "object"),
    ],
)
def test_other_types_are_rejected(value: Any, found: str) -> None:
    """The error for a value of any other type, even of a subclass, names the type."""
    with pytest.raises(TypeError) as caught:
        tag(value)

    assert found == str(caught.value)


def test_the_caller_chooses_the_scalars() -> None:
    """Plain data may contain only the types that the caller allows."""
    with pytest.raises(TypeError, match=r"^datetime.date$"):
        tag([date.max], SCALAR_TAGS - {"date"})


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: {"a": value}])
def test_the_depth_is_limited(wrap: Any) -> None:
    """Plain data may be nested up to `DEPTH_LIMIT` levels.

    Deeper data, or data with a cycle, is an error.
    """
    value: Any = None
    for _ in range(DEPTH_LIMIT):
        value = wrap(value)

    assert value == untag(json.loads(json.dumps(tag(value))))
    with pytest.raises(TypeError, match="nested too deeply"):
        tag(wrap(value))
