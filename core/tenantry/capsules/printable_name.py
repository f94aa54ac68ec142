"""Defines the type of the names in a capsule: names of tables, columns, endpoints and revisions."""

import re
from typing import Annotated

from pydantic import AfterValidator, FailFast

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def _check_printable(text: str) -> str:
    if _CONTROL_CHARACTERS.search(text):
        raise ValueError("the name holds control characters")
    return text


Name = Annotated[str, AfterValidator(_check_printable)]
"""A name without control characters, which is safe to print in a terminal."""

Names = Annotated[list[Name], FailFast()]
"""A list of names. Validation stops at the first invalid name, because each error takes memory."""
