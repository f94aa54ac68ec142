"""Finds the line of the application's code that causes an operation."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tenantry.private_code.names import tenant_of

_IMPORT = ("importlib._bootstrap", "_frozen_importlib")
"""The names of the module that runs an import."""


@dataclass(frozen=True)
class Origin:
    """Where an operation comes from."""

    place: str = ""
    """The nearest line of the application's code, such as `shop.py:3`; "" if there is none."""
    caller: str = ""
    """The module that performs the operation, without the modules that `find_origin` skips."""
    is_library_import: bool = False
    """Whether a library performs the operation while it is imported."""


def find_origin(root: Path, skipped: tuple[str, ...] = ()) -> Origin:
    """Return the origin of the operation that the calling thread performs now.

    Args:
        root: the folder that paths of code are relative to.
        skipped: modules and packages at the top of the stack that do not count as the caller.
    """
    frame = inspect.currentframe()
    caller = ""
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if isinstance(name, str):
            caller = caller or ("" if _is_part_of(name, (__name__, *skipped)) else name)
            if tenant_of(name):
                return Origin(_place(frame, root), caller)
            if name in _IMPORT:
                return Origin(caller=caller, is_library_import=True)
        frame = frame.f_back
    return Origin(caller=caller)


def _is_part_of(name: str, modules: tuple[str, ...]) -> bool:
    return f"{name}.".startswith(tuple(f"{module}." for module in modules))


def _place(frame: FrameType, root: Path) -> str:
    path = Path(frame.f_code.co_filename)
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    return f"{shown}:{frame.f_lineno}"
