"""Tells what belongs to a tenant, and what belongs to a library or to Tenantry.

All tenants share the modules and classes of the standard library, of installed packages and of
Tenantry.
"""

import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache

from tenantry.audit.raw_access import is_module, module_name, namespace_of, text_of
from tenantry.audit.sharing_rules import TypeKind, type_kind
from tenantry.audit.stores import is_store
from tenantry.endpoints.finding import find_endpoint
from tenantry.errors import EndpointError
from tenantry.private_code.names import plain_name, tenant_of
from tenantry.tenants.model import Tenant

TENANTRY = "tenantry"


class CodeOwners:
    """Tells tenant code from libraries.

    Args:
        packages: the packages of the enabled endpoints, and their top-level packages. Modules in
            these packages count as tenant code, even if they are installed as a library.
    """

    def __init__(self, packages: Iterable[str]) -> None:
        self._packages = tuple(f"{package}." for package in packages)
        self._is_tenant_code: dict[str, bool] = {}

    def is_tenant_code(self, module: str) -> bool:
        """Whether a module belongs neither to Tenantry nor to a library."""
        found = self._is_tenant_code.get(module)
        if found is None:
            found = self._find(module)
            if module in sys.modules:
                self._is_tenant_code[module] = found
        return found

    def _find(self, module: str) -> bool:
        if tenant_of(module):
            return True
        plain = plain_name(module)
        if f"{plain}.".startswith(self._packages):
            return True
        file = file_of(module)
        is_ours = plain.partition(".")[0] == TENANTRY
        return bool(file) and not is_ours and not file.startswith(library_folders())


def endpoint_packages(tenants: Iterable[Tenant]) -> set[str]:
    """Return the packages of the tenants' endpoints, and their top-level packages."""
    found = set()
    for tenant in tenants:
        for endpoint in tenant.blueprints:
            with suppress(EndpointError):  # no such endpoint, so the build fails
                package = find_endpoint(endpoint, tenant.app_dir)
                top = package.partition(".")[0]
                found |= {package} if top == TENANTRY else {package, top}
    return found


@dataclass(frozen=True)
class ProcessSnapshot:
    """The apps and modules of the process.

    Create the snapshot when all apps have been built.
    """

    apps: Mapping[int, str]
    """Maps the `id()` of each app to the name of its tenant."""
    code: CodeOwners
    modules: dict[int, str] = field(default_factory=lambda: dict(_namespace_ids()))
    """Maps the `id()` of each module's namespace to the module's name."""
    _kinds: dict[int, tuple[TypeKind, type]] = field(default_factory=dict)
    """Maps the `id()` of each type to its kind, and to the type, which keeps the `id()` valid."""
    _stores: dict[int, bool] = field(default_factory=dict)

    def kind(self, thing: object) -> TypeKind:
        """Return how the graph treats an object."""
        type_ = type(thing)
        found = self._kinds.get(id(type_))
        if found is None:
            found = self._kinds[id(type_)] = (type_kind(type_), type_)
        return found[0]

    def is_store(self, thing: object) -> bool:
        """Whether an object is a cache or limiter that the audit can ask."""
        type_ = type(thing)
        found = self._stores.get(id(type_))
        if found is None:
            found = self._stores[id(type_)] = is_store(type_)
        return found

    def package_of(self, thing: object) -> str:
        """Return the top-level package that defines a function, or the class of an object."""
        module = self.module_of(thing) or module_name(type(thing))
        return top_package(module)

    def is_tenant_code(self, module: str) -> bool:
        """Whether a module belongs neither to Tenantry nor to a library."""
        return self.code.is_tenant_code(module)

    def owner(self, thing: object) -> str | None:
        """Return the tenant that owns an app or a private copy of code; None for other objects."""
        if id(thing) in self.apps:
            return self.apps[id(thing)]
        return tenant_of(self.module_of(thing)) or None

    def module_of(self, thing: object) -> str:
        """Return the module of a class or function, or the name of a module; otherwise ""."""
        kind = self.kind(thing)
        if kind == "class":
            return module_name(thing)  # type: ignore[arg-type]
        if kind == "function":
            return text_of(thing.__globals__.get("__name__"))  # type: ignore[attr-defined]
        return self.modules.get(id(thing), "")


def top_package(module: str) -> str:
    """Return the first part of a module's name."""
    return module.partition(".")[0]


def file_of(module: str) -> str:
    """Return the file of an imported module, or "" if there is none."""
    found = sys.modules.get(module)
    return text_of(namespace_of(found).get("__file__")) if is_module(found) else ""


def _namespace_ids() -> Iterator[tuple[int, str]]:
    for name, module in list(sys.modules.items()):
        if is_module(module):
            namespace = namespace_of(module)
            yield id(namespace), text_of(namespace.get("__name__")) or name


@cache
def library_folders() -> tuple[str, ...]:
    """Return the folders of the standard library and of installed packages."""
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(f"{folder}/" for folder in folders)
