"""Tenantry compares the migrations in the code with the revisions in a database."""

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from shops import WriteShop, first, second, write_shop_fixture
from tenantry.errors import EndpointError
from tenantry.migrations.revisions import (
    Branch,
    compare,
    read_branches,
)

__all__ = ["write_shop_fixture"]

SHOP = Branch("corp.shop", None, Path(), frozenset({"shop_1", "shop_2"}), frozenset({"shop_2"}))
NEWS = Branch("corp.news", None, Path(), frozenset({"news_1"}), frozenset({"news_1"}))
HASHES = Branch("corp.hashes", None, Path(), frozenset({"1f"}), frozenset({"1f"}))
"""An endpoint whose revision IDs do not begin with its name."""

MERGED = """\
revision = "shop_4"
down_revision = ("shop_2", "shop_3")
def upgrade(): pass
def downgrade(): pass
"""


def test_heads_are_those_of_alembic(write_shop: WriteShop) -> None:
    """For migrations that fork and merge, Tenantry finds the same heads as Alembic."""
    fork = second(revision="shop_3")
    name = write_shop(first(), second(), fork, MERGED, second(revision="shop_5", after="shop_4"))

    (branch,) = read_branches([name], None)

    script = ScriptDirectory(branch.folder, version_locations=[branch.folder])
    assert {*script.get_heads()} == branch.heads == {"shop_5"}
    assert {each.revision for each in script.walk_revisions()} == branch.revisions


def test_an_endpoint_without_migrations_has_no_branch() -> None:
    """The endpoint `landing` has no tables, and therefore no branch of migrations."""
    assert () == read_branches(["landing"], None)


@pytest.mark.parametrize("raised", ["SystemExit(7)", "ValueError('no')"])
def test_reading_revisions_imports_no_package(
    write_shop: WriteShop, tmp_path: Path, raised: str
) -> None:
    """Reading an endpoint's revisions imports no package, because the package might raise."""
    name = write_shop(first())
    (tmp_path / "code/corp/__init__.py").write_text(f"raise {raised}")

    (branch,) = read_branches([name], None)

    assert {"shop_1"} == branch.heads
    assert "corp" not in sys.modules


def test_a_new_revision_file_is_read(write_shop: WriteShop) -> None:
    """Cached revisions of a folder expire when a file in the folder changes."""
    name = write_shop(first())
    before = read_branches([name], None)[0].heads
    write_shop(first(), second())

    assert ({"shop_1"}, {"shop_2"}) == (before, read_branches([name], None)[0].heads)


@pytest.mark.parametrize(
    ("revisions", "text"),
    [
        (("def",), "cannot read migrations/0001.py"),
        (("revision = make()",), "cannot read migrations/0001.py"),
        (("down_revision = None",), "assign plain values: revision = '…'"),
        ((first(), first()), "two files in migrations/ have the revision 'shop_1'"),
        ((second(),), "has the down_revision 'shop_1', but no file has that"),
    ],
)
def test_a_bad_revision_file_is_named(
    write_shop: WriteShop, revisions: tuple[str, ...], text: str
) -> None:
    """The error about an invalid revision file names endpoint and file, and says what to do."""
    name = write_shop(*revisions)

    with pytest.raises(EndpointError, match=f"endpoint 'corp.shop': .*{text}"):
        read_branches([name], None)


def test_two_endpoints_cannot_share_a_revision(write_shop: WriteShop) -> None:
    """Two endpoints of a tenant cannot use the same revision ID."""
    names = [write_shop(first()), write_shop(first(), name="news")]

    with pytest.raises(EndpointError, match=r"endpoint 'corp.shop' also has a revision 'shop_1'"):
        read_branches(names, None)


@pytest.mark.parametrize(
    ("versions", "state", "unknown"),
    [
        ((), "behind", set()),
        (("shop_1", "news_1"), "behind", set()),
        (("shop_2", "news_1"), "at head", set()),
        (("shop_2", "news_1", "old_7"), "at head", set()),
        (("shop_1", "news_1", "old_7"), "behind", set()),
        (("shop_2", "old_7"), "behind", set()),
        (("shopping_3", "news_1"), "behind", set()),
        (("shop_3", "news_1"), "ahead", {"shop_3"}),
        (("shop_3",), "behind", {"shop_3"}),
    ],
)
def test_revisions_are_behind_at_head_or_ahead(
    versions: tuple[str, ...], state: str, unknown: set[str]
) -> None:
    """A database with a revision from newer code counts as ahead of the code."""
    status = compare([SHOP, NEWS], versions)

    assert (state, unknown) == (status.state, status.unknown)


@pytest.mark.parametrize(("versions", "state"), [((), "behind"), (("2e",), "ahead")])
def test_an_unknown_revision_without_a_name_is_ahead(versions: tuple[str, ...], state: str) -> None:
    """If revision IDs do not contain endpoint names, an unknown revision counts as newer."""
    assert state == compare([HASHES], versions).state


@pytest.mark.live
def test_a_host_starts_without_alembic() -> None:
    """Importing the host imports neither Alembic nor SQLAlchemy."""
    code = "import sys, tenantry.host; print({'alembic', 'sqlalchemy'} & {*sys.modules})"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "set()\n" == done.stdout
