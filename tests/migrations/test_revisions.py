"""Where a database stands against the code: read from files, and by one query."""

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine
from sqlalchemy.engine import make_url

from shops import WriteShop, first, second, write_shop_fixture
from tenantry.database.probe import probe_database
from tenantry.errors import EndpointError
from tenantry.migrations.revisions import (
    Branch,
    LostDatabaseError,
    SchemaError,
    compare,
    look,
    look_through,
    read_branches,
)

__all__ = ["write_shop_fixture"]

SHOP = Branch("corp.shop", Path(), frozenset({"shop_1", "shop_2"}), frozenset({"shop_2"}))
NEWS = Branch("corp.news", Path(), frozenset({"news_1"}), frozenset({"news_1"}))
HASHES = Branch("corp.hashes", Path(), frozenset({"1f"}), frozenset({"1f"}))
"""Its ids do not begin with its name: no row can be told not to be its own."""

MERGED = """\
revision = "shop_4"
down_revision = ("shop_2", "shop_3")
def upgrade(): pass
def downgrade(): pass
"""


def test_heads_are_those_that_alembic_finds(write_shop: WriteShop) -> None:
    """Branches that fork and merge, annotated or not, have the heads that Alembic says."""
    fork = second(revision="shop_3")
    name = write_shop(first(), second(), fork, MERGED, second(revision="shop_5", after="shop_4"))

    (branch,) = read_branches([name])

    script = ScriptDirectory(branch.folder, version_locations=[branch.folder])
    assert {*script.get_heads()} == branch.heads == {"shop_5"}
    assert {one.revision for one in script.walk_revisions()} == branch.revisions


def test_an_endpoint_without_migrations_has_no_branch() -> None:
    """Landing has no tables."""
    assert () == read_branches(["landing"])


def test_a_new_revision_is_seen(write_shop: WriteShop) -> None:
    """What is remembered of a folder is forgotten when its files change."""
    name = write_shop(first())
    before = read_branches([name])[0].heads
    write_shop(first(), second())

    assert ({"shop_1"}, {"shop_2"}) == (before, read_branches([name])[0].heads)


@pytest.mark.parametrize(
    ("revisions", "text"),
    [
        (("def",), "migrations/0001.py cannot be read"),
        (("revision = make()",), "migrations/0001.py cannot be read"),
        (("down_revision = None",), "write revision = '…'"),
        ((first(), first()), "revision 'shop_1' is in two files"),
        ((second(),), "a revision follows 'shop_1', which is in no file"),
    ],
)
def test_bad_revisions_are_named(
    write_shop: WriteShop, revisions: tuple[str, ...], text: str
) -> None:
    """A folder of revisions that cannot be understood is refused with what to mend."""
    name = write_shop(*revisions)

    with pytest.raises(EndpointError, match=f"endpoint 'corp.shop': .*{text}"):
        read_branches([name])


def test_two_endpoints_cannot_share_a_revision(write_shop: WriteShop) -> None:
    """One table holds the revisions of all endpoints of a tenant: ids must differ."""
    names = [write_shop(first()), write_shop(first(), name="news")]

    with pytest.raises(EndpointError, match=r"'shop_1' is one of 'corp.shop' too"):
        read_branches(names)


@pytest.mark.parametrize(
    ("rows", "state", "newer"),
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
def test_a_database_stands_somewhere(rows: tuple[str, ...], state: str, newer: set[str]) -> None:
    """What newer code wrote is told from what is behind, and from rows of endpoints that left."""
    found = compare([SHOP, NEWS], rows)

    assert (state, newer) == (found.state, found.newer)


@pytest.mark.parametrize(("rows", "state"), [((), "behind"), (("2e",), "ahead")])
def test_a_row_that_may_be_anybodys_may_be_of_newer_code(rows: tuple[str, ...], state: str) -> None:
    """Where ids do not say whose they are, nothing is migrated over tables that may be there."""
    assert state == compare([HASHES], rows).state


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_database_is_asked_by_one_query(kind: str, postgres_url: str, tmp_path: Path) -> None:
    """Both ways to look see nothing in an empty database, and the rows in another."""
    url = make_url(postgres_url if kind == "postgresql" else f"sqlite:///{tmp_path}/a.sqlite3")
    engine = create_engine(url, poolclass=NullPool)
    empty = look(url), look_through(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('shop_1'), ('news_1')")

    there = look(url), look_through(engine)

    assert (({*()},) * 2, ({"shop_1", "news_1"},) * 2) == (empty, there)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_schema_that_is_not_the_urls_is_refused(postgres_url: str, is_there: bool) -> None:
    """A missing one is no empty database, and who has another by default is told."""
    url = make_url(postgres_url)
    admin = create_engine(url, poolclass=NullPool)
    if is_there:
        with admin.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {url.username}")  # wins over public
    else:
        url = url.update_query_dict({"options": "-csearch_path=acme"})
    refused = []
    for ask in (look, lambda url: look_through(create_engine(url, poolclass=NullPool))):
        with pytest.raises(SchemaError) as caught:
            ask(url)
        refused.append(str(caught.value))

    missing = (
        "the schema 'acme' does not exist, or this user may not use it; run CREATE SCHEMA first."
    )
    other = (
        "it would create tables in schema 'postgres', but its URL names 'public'; set "
        "?options=-csearch_path%3Dpostgres or ?options=-csearch_path%3Dpublic."
    )
    assert [other if is_there else missing] * 2 == refused
    assert refused[0] == f"{probe_database('acme', url.render_as_string()).problem}."


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """Looking at a SQLite database leaves nothing behind."""
    found = look(make_url(f"sqlite:///{tmp_path}/a.sqlite3"))

    assert (frozenset(), []) == (found, [*tmp_path.iterdir()])


def test_a_file_that_is_gone_is_not_at_nothing(tmp_path: Path) -> None:
    """The marker beside it says that it was there: its rows are lost, and that is told."""
    (tmp_path / "a.sqlite3.made").touch()

    with pytest.raises(LostDatabaseError, match=r"a\.sqlite3 is gone; restore it, or delete"):
        look(make_url(f"sqlite:///{tmp_path}/a.sqlite3"))


@pytest.mark.live
def test_a_host_needs_no_alembic() -> None:
    """Neither Alembic nor SQLAlchemy is imported by the rooms that a host starts with."""
    code = "import sys, tenantry.host; print({'alembic', 'sqlalchemy'} & {*sys.modules})"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "set()\n" == done.stdout
