"""Turns a configuration object into a `Tenant`, for apps that no tenant file describes.

A configuration object is a module, a class, a mapping, or any object with upper-case attributes.
"""

import copy
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

from tenantry.errors import Problem, TenantFileError
from tenantry.grammar import TENANT_NAME
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import parse_tenant


def tenant_of(config: object, data_dir: Path) -> Tenant:
    """Return the tenant that a module, a class, a mapping or any other object describes.

    Raises:
        TenantFileError: the configuration is invalid. The error contains all problems.
    """
    file = _file_of(config)
    values = _upper_case(config)
    problems = list(_without_value(file, values))
    if problems:
        raise TenantFileError(problems)
    return parse_tenant(
        _name_of(config, values), values, file=file, data_dir=data_dir, is_development=True
    )


def _file_of(config: object) -> str:
    """Return the file that defines a configuration, or its type, for error messages."""
    module = sys.modules.get(config.__module__) if isinstance(config, type) else config
    file = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
    return str(file or getattr(config, "__name__", type(config).__name__))


def _upper_case(config: object) -> dict[str, Any]:
    """Return the upper-case names of a configuration, with their values."""
    if isinstance(config, Mapping):
        return {key: config[key] for key in config if isinstance(key, str) and key.isupper()}
    return {key: getattr(config, key) for key in dir(config) if key.isupper()}


def _without_value(file: str, values: dict[str, Any]) -> Iterator[Problem]:
    """Replace each value with a copy.

    Yield a problem for each value that is not plain data or cannot be copied.
    """
    for key, value in values.items():
        if isinstance(value, property | cached_property):
            remedy = "pass an instance of the class, or write a plain value."
            yield Problem(file, f"found a {type(value).__name__}; {remedy}", key)
        elif isinstance(value, FunctionType | MethodType):
            yield Problem(file, f"found a {type(value).__name__}; write the value itself.", key)
        else:
            try:
                values[key] = copy.deepcopy(value)
            except Exception as error:  # noqa: BLE001 - `__deepcopy__` can raise any exception
                text = f"found a {type(value).__name__} that cannot be copied: {error}"
                yield Problem(file, f"{text}; write plain data.", key)


def _name_of(config: object, values: Mapping[str, Any]) -> str:
    """Return a tenant's name: the `APP_NAME` of its configuration, or the class or module name."""
    own = getattr(config, "__name__", type(config).__name__).rpartition(".")[2]
    for text in (values.get("APP_NAME"), own):
        if isinstance(text, str):
            name = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")
            if TENANT_NAME.fullmatch(name):
                return name
    return "app"
