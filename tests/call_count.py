"""Counts calls of Tenantry's own functions in all threads. Tests and benchmarks use this module."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import tenantry

_PACKAGE = str(Path(str(tenantry.__file__)).parent)


@contextmanager
def counting_calls() -> Iterator[Counter[str]]:
    """Count calls by `module.function` until the end of the block, except calls of endpoint code.

    The function does not count calls in threads that started before the block.
    """
    counts: Counter[str] = Counter()
    seen_names: dict[object, str] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        name = seen_names.get(code)
        if name is None:
            name = seen_names[code] = _name_of(frame)
        if name:
            counts[name] += 1

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield counts
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _name_of(frame: FrameType) -> str:
    """Return `package.module.function` of a Tenantry function, or an empty string for any other."""
    path = frame.f_code.co_filename
    if not path.startswith(_PACKAGE) or "/endpoints/" in path:
        return ""
    module = path.removeprefix(_PACKAGE).removesuffix(".py").strip("/").replace("/", ".")
    return f"{module}.{frame.f_code.co_qualname}"
