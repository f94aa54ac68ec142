"""What many databases are at, asked on one thread: the good case, and nothing but that."""

import socket
from pathlib import Path

import pytest
from postgres import Postgres
from sqlalchemy.engine import URL, make_url

from core import glance as room
from core.glance import glance
from core.revisions import look

VERSIONS = "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"


@pytest.fixture(name="make")
def _make(postgres_server: Postgres, postgres_url: str) -> "Make":
    return Make(postgres_server, make_url(postgres_url))


class Make:
    """Makes schemas of one database, which are as good as databases, and quicker made."""

    def __init__(self, server: Postgres, url: URL) -> None:
        self._server = server
        self.url = url
        self._count = 0

    def __call__(self, *statements: str) -> URL:
        """Return the URL of a new schema after these statements."""
        self._count += 1
        name = f"s{self._count}"
        first = f"CREATE SCHEMA {name}; SET search_path = {name}"
        with self._server.connect(str(self.url.database)) as connection:
            connection.execute("; ".join((first, *statements)))  # type: ignore[call-overload]
        return self.url.update_query_dict({"options": f"-csearch_path={name}"})


def test_each_database_says_what_it_is_at(make: Make) -> None:
    """More of them than are asked at once; also one without a row, or without the table."""
    urls = {
        f"t{number}": make(VERSIONS, f"INSERT INTO alembic_version VALUES ('a_1'), ('b_{number}')")
        for number in range(room.AT_ONCE + 1)
    }
    urls |= {"no row": make(VERSIONS), "no table": make(), "public": make.url}

    found = dict(glance(urls.items()))

    assert {name: look(url) for name, url in urls.items()} == found
    assert frozenset({"a_1", "b_3"}) == found["t3"]


def test_whatever_is_amiss_is_left(make: Make, tmp_path: Path) -> None:
    """Who is not answered as expected is asked again, by what says why."""
    good = make()
    make("CREATE SCHEMA postgres")  # the user's own, which comes before public
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = good.set(port=probe.getsockname()[1])
    amiss = {
        "no database": good.set(database="nowhere"),
        "no server": closed,
        "no socket": good.set(host=None, port=None, query={"host": str(tmp_path)}),
        "no schema": good.update_query_dict({"options": "-csearch_path=nowhere"}),
        "another schema": make.url,
        "no such option": good.update_query_dict({"colour": "red"}),
        "no column": make("CREATE TABLE alembic_version (id INTEGER)"),
        "not a version": make("CREATE TABLE alembic_version AS SELECT NULL::text version_num"),
    }

    assert {"good": set()} == dict(glance([*amiss.items(), ("good", good)]))


def test_the_first_that_is_silent_ends_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked after it, and nothing is left open."""
    monkeypatch.setattr(room, "PATIENCE_S", 0.1)
    monkeypatch.setattr(room, "AT_ONCE", 1)
    good = make()
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = good.set(port=server.getsockname()[1])

        found = dict(glance([("acme", good), ("silent", silent), ("globex", good)]))

    assert {"acme": set()} == found
