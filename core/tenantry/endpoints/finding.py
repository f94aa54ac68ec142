"""Finds the packages of endpoints, without importing an endpoint or Flask.

Without Flask, a process that only reads tenant files or migrates databases starts 0.1 s faster.
"""

import difflib
import os
import pkgutil
import shlex
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from tenantry.errors import EndpointError
from tenantry.files.permissions import is_writable_by_all
from tenantry.private_code.copying import CodeCopyError
from tenantry.private_code.search import folders_of, is_newer_than_snapshot
from tenantry.private_code.snapshot import copy_of

_PACKAGE = __name__.rpartition(".")[0]
"""The package that contains the endpoints with short names."""


_NOT_CODE = ("static", "templates")
"""Folders of an endpoint that hold many files and no modules."""

_CODE_SUFFIXES = (".py", ".pyc", ".so")


def available_endpoints() -> list[str]:
    """Return the sorted names of the endpoints that come with Tenantry."""
    return sorted(
        module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg
    )


def find_endpoint(name: str, app_dir: str | None) -> str:
    """Return the package of an endpoint, without importing anything.

    Args:
        name: the name in `BLUEPRINTS`.
        app_dir: the tenant's `APP_DIR`, which comes before `sys.path`.

    Raises:
        EndpointError: the package does not exist, has no `blueprint.py`, or every user of the
            machine can change its code.
    """
    try:
        folders = folders_of(package_of(name), app_dir) if _is_dotted_name(name) else []
        copies = [copy_of(folder) for folder in folders]
    except CodeCopyError as error:
        raise EndpointError(name, f"endpoint {name!r}: {error}") from error
    if not folders and app_dir is not None and is_newer_than_snapshot(name, [app_dir]):
        raise EndpointError(
            name,
            f"endpoint {name!r} is newer than the code that this host serves; run: "
            "tenantry restart.",
        )
    if not folders:
        raise EndpointError(name, f"no endpoint named {name!r}; {_suggestion(name)}")
    if not any(Path(folder, "blueprint.py").is_file() for folder in copies):
        raise EndpointError(
            name,
            f"endpoint {name!r} has no blueprint.py; add one that defines a Blueprint, or remove "
            f"{name!r} from BLUEPRINTS.",
        )
    path = _find_writable(name, app_dir, tuple(folders), int(time.monotonic()))
    if path is not None:
        raise EndpointError(
            name,
            f"endpoint {name!r}: every user can write to {path}; run: "
            f"chmod o-w {shlex.quote(str(path))}",
        )
    return package_of(name)


@lru_cache(maxsize=64)  # a look at 16 files takes 1 ms, and thousands of tenants share endpoints
def _find_writable(
    name: str, app_dir: str | None, folders: tuple[str, ...], second: int
) -> Path | None:
    """Return a part of an endpoint's code that every user can change, as it is in this second."""
    del folders, second
    return find_writable(code_paths(name, app_dir))


def find_writable(paths: Iterable[Path]) -> Path | None:
    """Return the first path that every user of the machine can change, or None."""
    for path in paths:
        with suppress(FileNotFoundError):  # an editor replaces the file
            if is_writable_by_all(path):
                return path
    return None


def code_paths(name: str, app_dir: str | None) -> list[Path]:
    """Return the code of an endpoint: its modules, its folders, and the folder that holds them all.

    For an endpoint that comes with Tenantry, the result is empty, because the code belongs to
    Tenantry.
    """
    return package_paths(name, app_dir) if package_of(name) == name else []


def package_paths(name: str, app_dir: str | None) -> list[Path]:
    """Return a package's modules and folders, and the folder that holds them all."""
    paths: list[Path] = []
    for package in map(Path, folders_of(name, app_dir)):
        parents = package.parents[: name.count(".") + 1]
        modules = [parent / "__init__.py" for parent in parents[:-1]]
        paths += [*parents, *filter(Path.exists, modules)]
        for folder, folders, files in os.walk(package):
            folders[:] = [one for one in folders if one not in _NOT_CODE]
            names = [one for one in files if one.endswith(_CODE_SUFFIXES)]
            paths += [Path(folder), *(Path(folder, one) for one in names)]
    return paths


def package_of(name: str) -> str:
    """Return the name of an endpoint's package, whether or not the package exists."""
    is_own = "." not in name and Path(__file__).with_name(name).joinpath("blueprint.py").is_file()
    return f"{_PACKAGE}.{name}" if is_own else name


def _is_dotted_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _suggestion(name: str) -> str:
    available = available_endpoints()
    nearest = difflib.get_close_matches(name, available, n=1)
    question = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{question}Endpoints: {', '.join(available)}."
