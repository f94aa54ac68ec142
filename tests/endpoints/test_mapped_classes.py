"""The classes of tenants' SQLAlchemy models find each other by the names that the code has."""

from pathlib import Path

import pytest
from sqlalchemy.exc import InvalidRequestError

from tenantry.endpoints.mapped_classes import resolve_plain_paths
from tenantry.private_code.modules import PrivateModules

MODELS = """
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

class Base(DeclarativeBase):
    pass

class Parent(Base):
    __tablename__ = "parents"
    id: Mapped[int] = mapped_column(primary_key=True)

class Child(Base):
    __tablename__ = "children"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("parents.id"))
    parent = relationship({argument!r}{more})
"""


def load_models(folder: Path, owner: str, argument: str, more: str = "") -> PrivateModules:
    """Return a tenant's modules, whose class `Child` has a relationship."""
    (folder / "shop").mkdir(exist_ok=True)
    (folder / "shop/__init__.py").touch()
    (folder / "shop/models.py").write_text(MODELS.format(argument=argument, more=more))
    resolve_plain_paths()
    modules = PrivateModules(owner, None, app_dir=str(folder))
    with modules.building():
        modules.load("shop.models")
    return modules


@pytest.mark.parametrize("path", ["shop.models.Parent", "models.Parent", "Parent"])
def test_a_relationship_finds_the_class_of_its_own_tenant(tmp_path: Path, path: str) -> None:
    """The plain path of a class means the class of the tenant that has the relationship."""
    both = [load_models(tmp_path, name, path) for name in ("acme", "globex")]

    found = [one.load("shop.models").Child.parent.property.mapper.class_ for one in both]

    assert found == [one.load("shop.models").Parent for one in both]
    for one in both:
        one.unload()


def test_an_expression_can_contain_a_plain_path(tmp_path: Path) -> None:
    """A plain path is also found inside an expression."""
    join = "shop.models.Child.parent_id == shop.models.Parent.id"
    modules = load_models(tmp_path, "acme", "Parent", f", primaryjoin={join!r}")

    models = modules.load("shop.models")

    assert models.Parent is models.Child.parent.property.mapper.class_
    modules.unload()


def test_the_error_names_the_path_as_written(tmp_path: Path) -> None:
    """The error for an unknown class does not contain the private name."""
    modules = load_models(tmp_path, "acme", "stock.models.Parent")

    with pytest.raises(InvalidRequestError, match=r"'stock\.models\.Parent'") as raised:
        modules.load("shop.models").Child.parent.property.mapper  # noqa: B018 - configures

    assert "stock@acme" not in str(raised.value)
    modules.unload()
