"""The value of `APP`: parses it and finds its code, without importing the application or Flask.

The notation is gunicorn's: `shop.wsgi:app`, or `shop:create_app('x')` with literals as arguments. A
module alone, such as `shop.wsgi`, means the name that gunicorn or Flask would look for.
"""

import ast
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tenantry.endpoints.finding import find_writable, package_paths
from tenantry.errors import ApplicationError
from tenantry.private_code.copying import CodeCopyError
from tenantry.private_code.search import OWN, find_from, folders_of, is_newer_than_snapshot

_NOTATION = "expected 'module:app', 'module:create_app' or \"module:create_app('literal')\""


@dataclass(frozen=True)
class AppReference:
    """A parsed value of `APP`."""

    text: str
    """The value as written in the tenant file."""
    module: str
    name: str = ""
    """The name in the module; empty for the usual names."""
    is_call: bool = False
    """Whether the name is called with `args` and `kwargs`."""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def top(self) -> str:
        """The first part of the module's name."""
        return self.module.partition(".")[0]


def parse_app(text: str) -> AppReference:
    """Parse the value of `APP`.

    Raises:
        ValueError: the value is not in gunicorn's notation.
    """
    module, colon, expression = text.partition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        file = module.removesuffix(".py").replace("/", ".")
        is_file = module.endswith(".py") and file.replace(".", "").isidentifier()
        raise ValueError(f"{_NOTATION}{f'; write {file + colon + expression!r}' * is_file}")
    if module.partition(".")[0] == OWN:
        raise ValueError("expected an application of your own, not a module of Tenantry")
    if not colon:
        return AppReference(text, module)
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError):  # a null byte is a ValueError
        raise ValueError(_NOTATION) from None
    match tree:
        case ast.Name(id=name):
            return AppReference(text, module, name)
        case ast.Call(func=ast.Name(id=name)):
            return AppReference(text, module, name, is_call=True, **_arguments(tree))
    raise ValueError(_NOTATION)


def _arguments(call: ast.Call) -> dict[str, Any]:
    try:
        args = tuple(ast.literal_eval(one) for one in call.args)
        kwargs = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords if one.arg}
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError("expected only literals as arguments, such as 'x' or 7") from None
    if len(kwargs) < len(call.keywords):
        raise ValueError("expected only literals as arguments, not **")
    return {"args": args, "kwargs": kwargs}


def find_app(reference: AppReference, app_dir: str | None) -> None:
    """Check that the module of an application exists, without importing it.

    Raises:
        ApplicationError: the module does not exist or cannot be copied, or every user of the
            machine can change it.
    """
    try:
        spec = find_from(reference.top, app_dir)
    except CodeCopyError as error:
        raise ApplicationError(f"application {reference.text!r}: {error}") from error
    if spec is None and app_dir is not None and is_newer_than_snapshot(reference.top, [app_dir]):
        raise ApplicationError(
            f"application {reference.text!r} is newer than the code that this host serves; run: "
            "tenantry restart."
        )
    if spec is None:
        raise ApplicationError(
            f"no module named {reference.top!r} in {app_dir} or among the installed packages; "
            "correct the name, or set APP_DIR (for all tenants: TENANTRY_APP_DIR) to its folder."
        )
    path = _find_writable(reference.top, app_dir, int(time.monotonic()))
    if path is not None:
        raise ApplicationError(
            f"every user can write to {path}; run: chmod o-w {shlex.quote(str(path))}"
        )


def app_paths(reference: AppReference, app_dir: str | None) -> list[Path]:
    """Return the code of an application: its package, or its module and the modules beside it."""
    return _paths(reference.top, app_dir)


def _paths(top: str, app_dir: str | None) -> list[Path]:
    if folders_of(top, app_dir):
        return package_paths(top, app_dir)
    spec = find_from(top, app_dir)
    if spec is None or not spec.has_location or spec.origin is None:
        return []
    folder = Path(spec.origin).parent
    return [folder, *sorted(folder.glob("*.py"))]


@lru_cache(maxsize=64)  # as for endpoints: a look at 16 files takes 1 ms
def _find_writable(top: str, app_dir: str | None, second: int) -> Path | None:
    """Return a part of the code that every user can change, as it is in this second."""
    del second
    return find_writable(_paths(top, app_dir))
