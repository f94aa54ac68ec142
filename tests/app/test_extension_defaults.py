"""Extensions that store data by key or in a folder keep tenants apart without configuration."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import Client

import leaks
from conftest import KEY
from tenantry.app.extension_defaults import DEFAULTS
from tenantry.app.factory import close_app, create_app

EXTENSIONS = """
from cachelib import FileSystemCache
from flask import session
from flask_caching import Cache
from flask_limiter import Limiter
from flask_session import Session
from flask_uploads import UploadSet, configure_uploads

cache, photos = Cache(), UploadSet("photos", ("png",))
limiter = Limiter(lambda: "client", storage_uri="memory://")

@shop_bp.record_once
def set_up(state):
    cache.init_app(state.app)
    limiter.init_app(state.app)
    configure_uploads(state.app, photos)
    folder = state.app.config.get("SHARED_FOLDER")
    if folder:
        state.app.config["SESSION_TYPE"] = "cachelib"
        state.app.config["SESSION_CACHELIB"] = FileSystemCache(folder)
        Session(state.app)

@shop_bp.get("/cached")
@limiter.limit("5/minute")
def cached():
    cache.set("greeting", "hello")
    return {
        "CACHE_DIR": cache.cache._path,
        "RATELIMIT_KEY_PREFIX": str(list(limiter.storage.storage)),
        "UPLOADS_DEFAULT_DEST": photos.config.destination,
    }

@shop_bp.get("/login")
def login():
    session["user"] = "ada"
    return ""

@shop_bp.get("/who")
def who():
    return session.get("user", "nobody")
"""

Build = Callable[..., Flask]


@pytest.fixture(name="build")
def _build(corp: Path, data_dir: Path) -> Iterator[Build]:
    """Return a function that builds a tenant whose endpoint uses the extensions."""
    shop = leaks.write_endpoint(corp, "shop", blueprint=EXTENSIONS)
    apps: list[Flask] = []

    def build(name: str, **keys: object) -> Flask:
        values: dict[str, Any] = {"APP_NAME": name, "SECRET_KEY": f"{name}-{KEY}"}
        values |= {"BLUEPRINTS": [shop], "CACHE_TYPE": "FileSystemCache"}
        apps.append(create_app(values | keys, data_dir=data_dir))
        return apps[-1]

    yield build
    for app in apps:
        close_app(app)


def test_extensions_use_the_defaults(build: Build, data_dir: Path) -> None:
    """The cache and uploads are in the tenant's folder, and rates are counted per tenant."""
    used = Client(build("acme")).get("/cached").json

    assert used is not None
    assert (f"{data_dir}/acme/cache", f"{data_dir}/acme/uploads/photos") == (
        used["CACHE_DIR"],
        used["UPLOADS_DEFAULT_DEST"],
    )
    assert "/acme/" in used["RATELIMIT_KEY_PREFIX"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the folder setting of Flask-Session
def test_other_stores_use_the_defaults(build: Build, data_dir: Path) -> None:
    """Caches on Redis, and sessions in files, have the tenant's prefix and folder."""
    from flask_caching import Cache  # noqa: PLC0415 - only this test needs them
    from flask_session import Session  # noqa: PLC0415

    app = build("acme", SESSION_TYPE="filesystem")
    Session(app)
    cache: Any = Cache(config={"CACHE_TYPE": "RedisCache"})
    cache.init_app(app)
    interface: Any = app.session_interface

    assert ("acme:", "acme:session:", f"{data_dir}/acme/sessions") == (
        cache.cache.key_prefix,
        interface.key_prefix,
        interface.cache._path,
    )


def test_a_session_id_is_valid_at_one_tenant_only(build: Build, tmp_path: Path) -> None:
    """A session ID of one tenant logs nobody in at another, even with one store for both."""
    users = []
    sid = ""
    for name in ("acme", "globex"):
        client = Client(build(name, SHARED_FOLDER=str(tmp_path / "shared")))
        if not sid:
            sid = str(client.get("/login").headers["Set-Cookie"]).split("=")[1].split(";")[0]
        client.set_cookie(f"session_{name}", sid)
        users.append(client.get("/who").text)

    assert ["ada", "nobody"] == users


@pytest.mark.parametrize("key", DEFAULTS)
def test_a_tenant_file_overrides_a_default(build: Build, tmp_path: Path, key: str) -> None:
    """Each default yields to the key in the tenant file."""
    own = str(tmp_path / "own")
    app = build("acme", **{key: own})

    assert own == app.config[key]
