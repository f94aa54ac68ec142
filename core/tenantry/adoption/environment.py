"""Records which environment variables the application's code reads, lacks and sets."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from tenantry.adoption.fact import Fact, FactKind
from tenantry.adoption.origin import find_origin

_READERS = (__name__, "os", "_collections_abc", "collections.abc")
"""The modules between the code that reads a variable and the recording."""

_FRAMEWORK = frozenset(
    {"click", "flask", "gunicorn", "jinja2", "sqlalchemy", "tenantry", "werkzeug"}
)
"""Libraries whose own environment variables do not concern the application."""


def record_environment(root: Path, write: Callable[[Fact], None]) -> None:
    """Record all later uses of `os.environ` and `os.getenv` in this process.

    Args:
        root: the folder that paths of code are relative to.
        write: receives the facts.
    """

    def note(kind: FactKind, name: object) -> None:
        origin = find_origin(root, _READERS)
        top = origin.caller.partition(".")[0]
        if origin.place and top not in _FRAMEWORK and top not in sys.stdlib_module_names:
            write(Fact(kind, str(name), place=origin.place))

    # Libraries may have imported the object `os.environ`, so the object gets another class.
    class RecordedEnvironment(os._Environ[str]):  # noqa: SLF001 - the class of os.environ has no public name
        def __getitem__(self, key: str) -> str:
            try:
                value = super().__getitem__(key)
            except KeyError:
                note("lacks", key)
                raise
            note("reads", key)
            return value

        def __setitem__(self, key: str, value: str) -> None:
            super().__setitem__(key, value)
            note("sets", key)

        def __delitem__(self, key: str) -> None:
            super().__delitem__(key)
            note("sets", key)

    cast("object", os.environ).__class__ = RecordedEnvironment
