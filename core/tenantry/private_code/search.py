"""Finds the files of modules without running any code.

In a process with a code snapshot, folders are searched as they were when they were copied. All
paths that these functions take and return are the original paths.
"""

import importlib.machinery
import os
from collections.abc import Sequence
from importlib.util import find_spec

from tenantry.private_code.snapshot import used_snapshot

OWN = __name__.partition(".")[0]
"""Our own package, which no folder can replace."""


def find_module(plain: str, folders: Sequence[str] | None) -> importlib.machinery.ModuleSpec | None:
    """Return the spec of a module in folders, or on `sys.path` if `folders` is None."""
    # The module is found by the last part of its name, because a namespace package looks up its
    # parent in `sys.modules`.
    name = plain.rpartition(".")[2]
    snapshot = used_snapshot()
    if folders is None or snapshot is None:
        return importlib.machinery.PathFinder.find_spec(name, folders)
    return snapshot.find(name, folders)


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

    The folder `app_dir` comes before `sys.path`.
    """
    spec = find_from(package, app_dir)
    return [] if spec is None else list(spec.submodule_search_locations or ())


def find_from(name: str, app_dir: str | None) -> importlib.machinery.ModuleSpec | None:
    """Return the spec of a module in `app_dir` or on `sys.path`, or None if there is none.

    A tenant file can name any module, but the code of that module must not run in a serving
    process. Therefore, this function does not call `importlib.util.find_spec`, which would import
    the parent packages.
    """
    top, *rest = name.split(".")
    try:
        if app_dir is not None and is_in_folder(top, app_dir):
            spec = find_module(top, [app_dir])
        else:
            spec = find_spec(top)
    except ValueError:  # the module has no spec, such as `__main__`
        return None
    path = top
    for part in rest:
        folders = None if spec is None else spec.submodule_search_locations
        if folders is None:
            return None
        path = f"{path}.{part}"
        spec = find_module(path, list(folders))
    return spec


def is_newer_than_snapshot(plain: str, folders: Sequence[str]) -> bool:
    """Whether a module is in one of the folders on disk, but not in this process's snapshot."""
    if used_snapshot() is None:
        return False
    paths = [os.path.join(folder, *plain.split(".")) for folder in folders]
    return any(os.path.isdir(path) or os.path.isfile(f"{path}.py") for path in paths)
