"""Finds the files of modules without running any code."""

import importlib.machinery
import importlib.util
from collections.abc import Sequence

OWN = __name__.partition(".")[0]
"""Our own package, which no folder can replace."""


def find_module(plain: str, folders: Sequence[str] | None) -> importlib.machinery.ModuleSpec | None:
    """Return the spec of a module in folders, or on `sys.path` if `folders` is None."""
    # The module is found by the last part of its name, because a namespace package looks up its
    # parent in `sys.modules`.
    return importlib.machinery.PathFinder.find_spec(plain.rpartition(".")[2], folders)


def is_in_folder(top: str, folder: str) -> bool:
    """Whether the top-level name means a module in a folder rather than one on `sys.path`.

    As in Python, a folder without `__init__.py` gives way to a module or package on `sys.path`.
    """
    found = find_module(top, [folder])
    if found is None or top == OWN:
        return False
    return found.loader is not None or find_module(top, None) is None


def folders_of(package: str, app_dir: str | None) -> list[str]:
    """Return the folders of a package, or no folders if the package does not exist.

    The folder `app_dir` comes before `sys.path`. A tenant file can name any package, but the code
    of that package must not run in a serving process. Therefore, this function does not call
    `importlib.util.find_spec`, which would import the parent packages.
    """
    top, *rest = package.split(".")
    try:
        if app_dir is not None and is_in_folder(top, app_dir):
            spec = find_module(top, [app_dir])
        else:
            spec = importlib.util.find_spec(top)
    except ValueError:  # the module has no spec, such as `__main__`
        return []
    path = top
    for part in rest:
        folders = None if spec is None else spec.submodule_search_locations
        if folders is None:
            return []
        path = f"{path}.{part}"
        spec = find_module(path, list(folders))
    return [] if spec is None else list(spec.submodule_search_locations or ())
