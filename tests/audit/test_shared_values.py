"""Two spellings of one database, store or folder have the same identity."""

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tenantry.audit.shared_values import databases, file_identity, folders, stores

SERVER = "postgresql://a:x@localhost"


def identities(keys: dict[str, object]) -> set[object]:
    """Return the identities of all databases, stores and folders in a configuration."""
    files = {file_identity(path) for _, path in folders(keys)}
    return {found for _, found in (*databases(keys), *stores(keys))} | files


ALIKE: list[tuple[dict[str, object], dict[str, object]]] = [
    ({"DATABASE_URI": f"{SERVER}/x"}, {"REPORTS_DB": "postgresql+psycopg://127.0.0.1:5432/x"}),
    ({"DATABASE_URI": f"{SERVER}/x"}, {"JOBS": {"result_backend": "db+postgres://localhost/x"}}),
    ({"DATABASE_URI": "odd://x"}, {"SQLALCHEMY_DATABASE_URI": "odd://x"}),
    (
        {"DATABASE_URI": f"{SERVER}/x"},
        {"SQLALCHEMY_BINDS": {"x": {"url": make_url(f"{SERVER}/x")}}},
    ),
    ({"CACHE_REDIS_URL": "redis://localhost"}, {"QUEUE_URL": "rediss://u:p@[::1]:6379/0"}),
    ({"CACHE_REDIS_URL": "redis://localhost/3"}, {"QUEUE_URL": "redis://localhost/9?db=3"}),
    (
        {"CACHE_REDIS_HOST": "localhost", "CACHE_REDIS_DB": 2},
        {"CELERY": {"broker_url": "redis://localhost/2"}},
    ),
    ({"REDIS_URL": "unix:///run/r?db=1"}, {"X": "redis+socket:///run/r?virtual_host=1"}),
    ({"MONGO_URI": "mongodb://u:p@127.0.0.2,127.0.0.3/x"}, {"MONGO": "mongodb://127.0.0.2:27017/x"}),
    ({"EXPORT_FOLDER": "exports"}, {"UPLOADED_FILES_DEST": Path("./exports").absolute()}),
]  # fmt: skip
APART: list[tuple[dict[str, object], dict[str, object]]] = [
    ({"DATABASE_URI": f"{SERVER}/x"}, {"DATABASE_URI": f"{SERVER}/x?options=-csearch_path%3Da"}),
    ({"DATABASE_URI": f"{SERVER}/x"}, {"DATABASE_URI": f"{SERVER}:5433/x"}),
    ({"CACHE_REDIS_URL": "redis://localhost/1"}, {"CACHE_REDIS_URL": "redis://localhost/2"}),
    (
        {"CACHE_REDIS_URL": "redis://localhost", "CACHE_KEY_PREFIX": "acme:"},
        {"CACHE_REDIS_URL": "redis://localhost", "CACHE_KEY_PREFIX": "globex:"},
    ),
    ({"API_PATH": "/api", "JWT_COOKIE_PATH": "/"}, {"API_PATH": "/api", "JWT_COOKIE_PATH": "/"}),
    ({"STATIC_FOLDER": "static"}, {"STATIC_FOLDER": "static"}),
    ({"MOTTO": "redis: fast", "SITE": "https://x"}, {"MOTTO": "redis: fast", "SITE": "https://x"}),
    ({"SQLALCHEMY_BINDS": {"x": {"note": "n"}}}, {"SQLALCHEMY_BINDS": {"x": {"note": "n"}}}),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_spellings_of_one_location_are_equal(
    one: dict[str, object], other: dict[str, object]
) -> None:
    """When the audit compares URLs, it ignores host aliases, default ports and passwords."""
    assert identities(one) & identities(other)


@pytest.mark.parametrize(("one", "other"), APART)
def test_different_locations_are_not_equal(
    one: dict[str, object], other: dict[str, object]
) -> None:
    """URLs that differ in schema, port, database number or key prefix have different identities."""
    assert set() == identities(one) & identities(other)


def test_a_link_is_equal_to_its_target(tmp_path: Path) -> None:
    """A symbolic link to a folder and the folder itself have the same identity."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").symlink_to("one")

    names = {"A_DIR": str(tmp_path / "one"), "B_PATH": str(tmp_path / "two")}

    assert 1 == len(identities(names))
