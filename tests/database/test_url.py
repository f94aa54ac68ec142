"""`DATABASE_URI` values are validated, and two spellings of one database are recognized."""

from pathlib import Path

import pytest

from tenantry.database.url import database_identity, parse_database_url

PASSWORD = "hunter2-hunter2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be parsed; write dialect://user:password@host:port/database"),
        (PASSWORD, "cannot be parsed"),
        (f"postgresql+psycopg://acme:p@ss:{PASSWORD}@host/acme", "with %40 for @"),
        ("sqlite:///a\0b", "cannot be parsed"),
        (f"postgres://acme:{PASSWORD}@host/acme", "unknown dialect 'postgres'; use sqlite or"),
        ("postgresql+psycopg://a@h/x?dbname=shared", "has 'dbname' after the '?', which would"),
        (f"postgresql+psycopg://a@h/x?password={PASSWORD}", "has 'password' after the '?'"),
        ("postgresql+psycopg://a@h/x?service=shared", "has 'service' after the '?'"),
        ("postgresql+psycopg://a@h/x?host=127.0.0.1", "has 'host' after the '?', which would"),
        ("postgresql+psycopg://a@h:1/x?port=2", "has 'port' after the '?'"),
        (
            "postgresql+psycopg://a@h/x?options=-csearch_path%3Dacme,public",
            "has a search_path of 2 schemas, so a name that is not in the first could mean another",
        ),
        ("postgresql+psycopg://a@h/x?options=-csearch_path%3D%24user", "names no schema; name it"),
        ("postgresql+psycopg://a@h/x?options=-csearch_path%3D%22%24user%22", "names no schema"),
        ("postgresql+psycopg://a@h/x?options=-csearch_path%3D", "names no schema; name it"),
        (f"mssql+pymssql://acme:{PASSWORD}@host/acme", "the driver 'pymssql', which is not"),
        (f"postgresql+pg8000://acme:{PASSWORD}@host/acme", "pip install 'tenantry[postgres]'"),
    ],
)
def test_an_unusable_url_is_rejected(text: str, message: str) -> None:
    """The error for an invalid `DATABASE_URI` says what to do, and shows no part of a password."""
    with pytest.raises(ValueError, match=r".+") as caught:
        parse_database_url(text)

    assert message in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_a_parsed_url_masks_its_password() -> None:
    """Printing a database URL does not show the password."""
    url = parse_database_url(f"sqlite://acme:{PASSWORD}@host/acme")

    assert "sqlite://acme:***@host/acme" == str(url)


def test_a_sqlite_file_is_identified_by_its_real_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two spellings of one SQLite path have the same identity, whatever the options and drivers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to("acme.db")
    (tmp_path / "folder").symlink_to(tmp_path)
    texts = [
        "sqlite:///acme.db",
        f"sqlite:///{tmp_path}/acme.db",
        f"sqlite:///{tmp_path}/./other/../acme.db",
        f"sqlite:///{tmp_path}//acme.db?timeout=5",
        f"sqlite:///{tmp_path}/link.db",
        f"sqlite:///{tmp_path}/folder/acme.db",
        f"sqlite:///file:{tmp_path}/acme.db?uri=true",
        f"sqlite+pysqlite:///{tmp_path}/acme.db",
    ]

    identities = {text: database_identity(text) for text in texts}

    assert dict.fromkeys(texts, ("sqlite", str(tmp_path / "acme.db"))) == identities


def test_a_loop_of_links_has_an_identity(tmp_path: Path) -> None:
    """Comparing two SQLite paths in a loop of symbolic links causes no error."""
    (tmp_path / "loop.db").symlink_to("loop.db")

    assert ("sqlite", str(tmp_path / "loop.db")) == database_identity(
        f"sqlite:///{tmp_path}/loop.db"
    )


@pytest.mark.parametrize(
    "text", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:a?mode=memory&uri=true"]
)
def test_an_in_memory_database_is_never_shared(text: str) -> None:
    """Two tenants may both use `sqlite://`, because each in-memory database is separate."""
    assert database_identity(text) is None


def test_a_shared_in_memory_database_is_identified_by_its_name() -> None:
    """An in-memory SQLite database with `cache=shared` is identified by its name."""
    url = "sqlite:///file:a?mode=memory&cache=shared&uri=true"

    assert ("sqlite", "memory", "a") == database_identity(url)


SERVER = ("postgresql", "db.example.org", "5432", "acme")
THIS_MACHINE = ("postgresql", "localhost", "5432", "acme")


@pytest.mark.parametrize(
    ("identity", "texts"),
    [
        (
            SERVER,
            [
                "postgresql+psycopg://db.example.org/acme",
                "postgresql://db.example.org:5432/acme",
                "postgresql+psycopg://globex:other@DB.example.org./acme?sslmode=require",
                "postgresql://acme@db.example.org",
                "postgresql:///acme?host=db.example.org&port=5432",
                "postgresql:///acme?host=db.example.org:5432",
            ],
        ),
        (
            THIS_MACHINE,
            [
                "postgresql:///acme",
                "postgresql://localhost/acme",
                "postgresql://LOCALHOST./acme",
                "postgresql://127.0.0.1/acme",
                "postgresql://[::1]/acme",
            ],
        ),
    ],
)
def test_a_server_database_is_identified_by_host_port_and_name(
    identity: tuple[str, ...], texts: list[str]
) -> None:
    """Comparing database URLs ignores the user, the password, the driver and the loopback name."""
    identities = {text: database_identity(text) for text in texts}

    assert dict.fromkeys(texts, identity) == identities


def test_another_host_port_or_name_is_another_database() -> None:
    """URLs with different hosts, ports or database names have different identities."""
    texts = [
        "postgresql://db.example.org/globex",
        "postgresql://db.example.org:5433/acme",
        "postgresql://other.example.org/acme",
        "postgresql:///acme?host=/run/postgresql",
        "mysql://db.example.org/acme",
    ]

    identities = {database_identity(text) for text in texts}

    assert (len(texts), False) == (len(identities), SERVER in identities)


ACME = "postgresql+psycopg://acme@db.example.org/acme"


@pytest.mark.parametrize(
    ("schema", "options"),
    [
        ("acme", "-csearch_path%3Dacme"),
        ("acme", "-c%20search_path%3Dacme"),
        ("acme", "--search-path%3DACME"),
        ("acme", "-cstatement_timeout%3D5s%20-c%20Search_Path%3D%22acme%22%5C%20"),
        ("acme", "-csearch_path%3Dglobex%20-csearch_path%3Dacme"),
        ("Acme", "-csearch_path%3D%22Acme%22"),
        (None, "-csearch_path%3Dpublic"),
        (None, "-cstatement_timeout%3D5s"),
    ],
)
def test_a_schema_counts_as_a_database(schema: str | None, options: str) -> None:
    """Two PostgreSQL URLs with different schemas name different databases."""
    identity = SERVER if schema is None else (*SERVER, schema)

    assert identity == database_identity(f"{ACME}?options={options}")
