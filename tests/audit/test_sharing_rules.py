"""The audit's sharing rules name classes that exist in the installed libraries."""

import importlib
from dataclasses import dataclass

import pytest

from tenantry.audit import sharing_rules
from tenantry.audit.raw_access import full_name
from tenantry.audit.sharing_rules import MAY_BE_SHARED, type_kind


@pytest.mark.parametrize("name", [*MAY_BE_SHARED, *sorted(sharing_rules._LISTENERS)])
def test_a_class_that_a_rule_names_exists(name: str) -> None:
    """Each private attribute that a sharing rule names exists in the installed library."""
    module, _, class_name = name.rpartition(".")

    class_ = getattr(importlib.import_module(module), class_name, None)

    assert class_ is not None, f"{module} has no {class_name}; find its new name"
    assert name == full_name(class_)


def test_a_frozen_dataclass_is_not_mutable() -> None:
    """The audit treats a frozen dataclass as immutable."""

    @dataclass
    class Open:
        value: int

    @dataclass(frozen=True)
    class Frozen:
        value: int

    assert ("mutable", "wrapper") == (type_kind(Open), type_kind(Frozen))
