"""Tenants work with PostgreSQL servers of any encoding, and report read-only or slow servers."""

import contextlib
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url
from werkzeug.test import Client

import postgres
from postgres import Postgres
from servers import in_threads, wait_until
from shops import WriteShop, first, second, write_shop_fixture
from tenantry.host import Host
from tenantry.migrations.fleet_run import FleetLimits, upgrade
from tenantry.migrations.status import MigrationStatus
from tenantry.tenants.validation import parse_tenant

__all__ = ["write_shop_fixture"]

NOTES = """\
from flask import request
from flask_restful import Resource
from sqlalchemy import text
from tenantry.database.session import db
class Shop(Resource):
    def get(self):
        db.session.execute(text("SELECT pg_sleep(:s)"), {"s": float(request.args.get("sleep", 0))})
        return db.session.execute(text("SELECT string_agg(note, ',') FROM goods")).scalar_one()
    def post(self):
        note = request.get_json()
        db.session.execute(text("INSERT INTO goods VALUES (:note)"), {"note": note})
        db.session.commit()
        return "", 201
"""

FIRST = first().replace(
    'sa.Column("id", sa.Integer, primary_key=True)', 'sa.Column("note", sa.Text)'
)


class Site:
    """A host whose tenant acme keeps notes in a PostgreSQL database."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.client = Client(host)

    def upgrade(self) -> MigrationStatus:
        """Upgrade acme's database."""
        tenants = [mount.tenant for mount in self.host.router.mounts if mount.tenant is not None]
        return upgrade(tenants, self.host.settings.data_dir, FleetLimits(jobs=1)).results[0]

    def post(self, note: str) -> tuple[int, str]:
        """Write a note, and return the status and the detail of a refusal."""
        answer = self.client.post("/acme/shop", json=note)
        return answer.status_code, (answer.json or {}).get("detail", "")

    def get(self, query: str = "") -> tuple[int, object]:
        """Return the status and all notes."""
        answer = self.client.get(f"/acme/shop{query}")
        return answer.status_code, answer.json


@pytest.fixture(name="make_site")
def _make_site(
    write_shop: WriteShop, write_tenant: Callable[..., Path], host: Host, tmp_path: Path
) -> Callable[..., Site]:
    """Return a function that makes a site on a database with the given migrations."""

    def make(url: str, *more: str) -> Site:
        endpoint = write_shop(FIRST, *more)
        (tmp_path / "code/corp/shop/resources.py").write_text(NOTES)
        write_tenant("acme", BLUEPRINTS=[endpoint], DATABASE_URI=url)
        host.load()
        return Site(host)

    return make


def execute(server: Postgres, statement: str) -> None:
    """Run a statement as the administrator of a server."""
    with closing(server.connect()) as connection:
        connection.execute(statement.encode())


@pytest.mark.live
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "WIN1252", "EUC_JP", "UTF8"])
def test_text_survives_in_a_database_of_any_encoding(
    postgres_server: Postgres, make_site: Callable[..., Site], encoding: str
) -> None:
    """A database stores text unchanged, and a character that the encoding lacks gets 422."""
    name = f"test_encoding_{encoding.lower()}"
    execute(postgres_server, f'DROP DATABASE IF EXISTS "{name}"')
    execute(postgres_server, f"CREATE DATABASE \"{name}\" ENCODING '{encoding}' TEMPLATE template0")
    site = make_site(postgres_server.url(name))
    migrated = site.upgrade().state
    texts = {"é": True, "€": encoding not in ("LATIN1", "EUC_JP")}
    texts |= {"日": encoding not in ("LATIN1", "WIN1252"), "a\0b": False, "\ud800": False}
    statuses = {one: site.post(one)[0] for one in texts}
    good = [one for one, is_storable in texts.items() if is_storable]

    assert "upgraded" == migrated
    assert {one: 201 if is_good else 422 for one, is_good in texts.items()} == statuses
    assert (200, ",".join(good)) == site.get()
    site.host.close()


@pytest.mark.live
def test_a_time_limit_stops_requests_but_not_migrations(
    postgres_server: Postgres, postgres_url: str, make_site: Callable[..., Site]
) -> None:
    """With `statement_timeout`, a slow request gets 503, but a slow migration succeeds."""
    name = make_url(postgres_url).database
    execute(postgres_server, f'ALTER DATABASE "{name}" SET statement_timeout = 100')
    site = make_site(postgres_url, second('op.execute("SELECT pg_sleep(0.5)")'))

    migrated = site.upgrade()
    slow, quick = site.client.get("/acme/shop?sleep=60"), site.get()

    assert ("upgraded", "") == (migrated.state, migrated.reason)
    assert (503, "5") == (slow.status_code, slow.headers["Retry-After"])
    assert "took too long" in slow.text
    assert (200, None) == quick


@pytest.mark.live
def test_a_read_only_database_serves_what_only_reads(
    postgres_server: Postgres, postgres_url: str, make_site: Callable[..., Site]
) -> None:
    """With `default_transaction_read_only`, reads work, and a write gets 503 with the reason."""
    site = make_site(postgres_url)
    site.upgrade()
    name = make_url(postgres_url).database
    execute(postgres_server, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    with closing(postgres_server.connect()) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
            (name,),
        )
    wait_until(lambda: site.get() == (200, None))

    status, detail = site.post("a")

    assert (503, True) == (status, "is read-only" in detail)


@contextlib.contextmanager
def standby_of(server: Postgres) -> Iterator[Postgres]:
    """Run a hot standby of a server until the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="tenantry-pg-"))
    try:
        copy = postgres.start_standby(folder, server)
        try:
            yield copy
        finally:
            copy.stop()
    finally:
        shutil.rmtree(folder)


@pytest.mark.live
def test_a_hot_standby_serves_what_only_reads(
    make_site: Callable[..., Site], write_shop: WriteShop, data_dir: Path
) -> None:
    """On a standby, reads work, writes get 503, and migrations fail with a remedy."""
    with postgres.running(wal_level="replica", max_wal_senders="4") as server:
        keys = {"SECRET_KEY": "acme-" * 12, "BLUEPRINTS": [write_shop(FIRST)]}
        keys |= {"DATABASE_URI": server.new_database("acme")}
        upgrade([parse_tenant("acme", keys, data_dir=data_dir)], data_dir, FleetLimits(jobs=1))
        with closing(server.connect("acme")) as connection:
            connection.execute("INSERT INTO goods VALUES ('a')")
        with standby_of(server) as standby:
            site = make_site(standby.url("acme"))
            wait_until(lambda: site.get() == (200, "a"))
            at_head, write = site.upgrade(), site.post("b")
            write_shop(FIRST, second())
            behind = site.upgrade()
            site.host.close()

    assert "at head" == at_head.state
    assert (503, True) == (write[0], "is read-only" in write[1])
    assert "failed" == behind.state
    assert "the database is read-only" in behind.reason


@pytest.mark.live
def test_a_restart_of_the_server_under_load_is_only_503(make_site: Callable[..., Site]) -> None:
    """While the database server restarts, requests get 200 or 503. Later requests get 200."""
    statuses: Counter[int] = Counter()
    with postgres.running() as server:
        site = make_site(server.new_database("acme"))
        site.upgrade()

        def work(stop: threading.Event) -> None:
            while not stop.wait(0.005):
                statuses[site.get()[0]] += 1
                statuses[site.post("a")[0]] += 1

        with in_threads(work, work, work):
            for how in (signal.SIGINT, signal.SIGQUIT):
                wait_until(lambda: site.get()[0] == 200)
                server.stop(how)
                wait_until(lambda: site.get()[0] == 503)
                server.start_again()
            wait_until(lambda: site.get()[0] == 200)
        after = {site.get()[0] for _ in range(50)}
        site.host.close()

    assert {200, 201, 503} == statuses.keys()
    assert {200} == after
