"""Applications in the layouts that people write run for two tenants, without a changed line."""

import io
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from commands import Tenantry
from tenantry.host import Host
from tenantry.settings import HostSettings

APPS = Path(__file__).parents[1] / "apps"


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Enable the loggers that the logging setup in a Flask-Migrate `env.py` disables."""
    before = {logger: logger.disabled for logger in loggers()}
    yield
    for logger in loggers():
        logger.disabled = before.get(logger, False)


def loggers() -> list[logging.Logger]:
    """Return all loggers of the process."""
    found = logging.root.manager.loggerDict.values()
    return [logger for logger in found if isinstance(logger, logging.Logger)]


class BufferedClient(Client):
    """A client that reads each response, and closes it, unless a test asks for the stream."""

    def open(self, *args: Any, buffered: bool = True, **kwargs: Any) -> TestResponse:
        """Send a request."""
        return super().open(*args, buffered=buffered, **kwargs)


Serve = Callable[..., Client]


@pytest.fixture(name="serve")
def _serve(
    host: Host, tmp_path: Path, write_tenant: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Serve:
    """Return a function that serves a copy of an application for acme and globex."""

    def serve(app: str, folder: str, **keys: object) -> Client:
        project = shutil.copytree(APPS / folder, tmp_path / "project")
        monkeypatch.setenv("TENANTRY_APP_DIR", str(project))
        for name in ("acme", "globex"):
            write_tenant(name, BLUEPRINTS=None, APP=app, APP_DIR=str(project), **keys)
        host.load()
        return BufferedClient(host)

    return serve


def follow(client: Client, answer: TestResponse) -> TestResponse:
    """Request the relative location of a redirect."""
    assert answer.status_code == 302, answer.text
    return client.get(answer.location)


def test_the_tutorials_application(serve: Serve, tenantry: Tenantry) -> None:
    """Flask's tutorial: a factory, two blueprints, SQLite, templates, static files, a command."""
    client = serve("flaskr:create_app", "tutorial")
    created = [tenantry("run", name, "--", "init-db").out for name in ("acme", "globex")]
    ada = {"username": "ada", "password": "lovelace"}

    client.post("/acme/auth/register", data=ada)
    page = follow(client, client.post("/acme/auth/login", data=ada))
    posted = follow(client, client.post("/acme/create", data={"title": "One", "body": "First"}))

    assert ["Initialized the database.\n"] * 2 == created
    assert '<span>ada</span> <a href="/acme/auth/logout">' in page.text
    assert "<h1>One</h1>" in posted.text
    others = client.get("/globex/")
    assert not re.search("One|ada", others.text)
    assert 'href="/globex/auth/login"' in others.text
    assert "/globex/auth/login" == client.get("/globex/create").location
    assert [200, 200, 404] == [
        client.get(path).status_code
        for path in ("/acme/static/style.css", "/globex/hello", "/acme/7")
    ]


@pytest.mark.filterwarnings("ignore:'get_engine' is deprecated")  # in the env.py of Flask-Migrate
def test_a_factory_with_extensions(serve: Serve, tenantry: Tenantry, tmp_path: Path) -> None:
    """Flask-SQLAlchemy, Flask-Migrate, Flask-Login and Flask-WTF, with models and forms."""
    client = serve("wsgi", "notebook")
    folder = str(tmp_path / "project/migrations")
    for name in ("acme", "globex"):
        tenantry("run", name, "--", "db", "upgrade", "-d", folder)
    tenantry("run", "acme", "--", "add-user")

    page = log_in(client, "/acme")
    data = {"text": "A note", "csrf_token": token_in(page)}
    page = follow(client, client.post("/acme/", data=data))

    assert "<p>ada</p>" in page.text
    assert "<li>A note</li>" in page.text
    assert 400 == client.post("/acme/", data={"text": "forged"}).status_code
    assert 200 == log_in_page(client, "/globex").status_code
    assert "/globex/login?next=%2Fglobex%2F" == client.get("/globex/").location
    assert not (tmp_path / "project/notebook.db").exists()


def log_in_page(client: Client, prefix: str) -> TestResponse:
    """Send the log-in form of the notebook, and return the answer."""
    token = token_in(client.get(f"{prefix}/login"))
    data = {"name": "ada", "password": "lovelace", "csrf_token": token}
    return client.post(f"{prefix}/login", data=data)


def log_in(client: Client, prefix: str) -> TestResponse:
    """Log in at the notebook, and return the page after it."""
    return follow(client, log_in_page(client, prefix))


def token_in(page: TestResponse) -> str:
    """Return the CSRF token of a form."""
    found = re.search(r'name="csrf_token" type="hidden" value="([^"]+)"', page.text)
    assert found, page.text
    return found[1]


def test_a_single_file_with_sessions_and_uploads(
    serve: Serve, tenantry: Tenantry, data_dir: Path
) -> None:
    """A Flask object in a module: module state, sessions, uploads, an error page, a command."""
    client = serve("app", "single")

    client.post("/acme/login", data={"name": "ada"})
    file = {"file": (io.BytesIO(b"one"), "one.txt")}
    uploaded = follow(client, client.post("/acme/upload", data=file))

    assert b"one" == uploaded.data
    assert "Hello ada, 5 visits" in client.get("/acme/").text
    assert "Hello stranger, 2 visits" in client.get("/globex/").text
    assert 'href="/globex/"' in client.get("/globex/uploads/one.txt").text
    assert [data_dir / "acme/uploads/one.txt"] == [*data_dir.rglob("one.txt")]
    assert "1\n" == tenantry("run", "acme", "--", "count").out


def test_an_api_of_apiflask(serve: Serve) -> None:
    """APIFlask, a subclass of Flask: schemas, errors, and a description of the API."""
    client = serve("app:app", "pets")

    created = client.post("/acme/pets", json={"name": "Rex"})
    refused = client.post("/acme/pets", json={"name": "too long for a name"})

    assert (201, {"id": 0, "name": "Rex"}) == (created.status_code, created.json)
    assert (422, "Validation error") == (refused.status_code, json.loads(refused.data)["message"])
    assert [{"id": 0, "name": "Rex"}] == client.get("/acme/pets").json
    assert [] == client.get("/globex/pets").json
    assert "Pets" == json.loads(client.get("/globex/openapi.json").data)["info"]["title"]
    assert 'url: "/globex/openapi.json"' in client.get("/globex/docs").text.replace("'", '"')


def test_server_sent_events(serve: Serve) -> None:
    """A stream of events stays open, and receives only the events of its own tenant."""
    client = serve("events:app", "events")
    with client.get("/acme/listen?once=1", buffered=False) as stream:
        parts = stream.iter_encoded()
        ready = next(parts)

        sent = [client.post(f"/{name}/announce", json=name).status_code
                for name in ("globex", "acme")]  # fmt: skip

        assert (b": ready\n\n", [204, 204]) == (ready, sent)
        assert [b'data: "acme"\n\n'] == list(parts)


@pytest.mark.live
@pytest.mark.parametrize(
    ("app", "folder", "findings"),
    [
        ("flaskr", "tutorial", ["process:sqlite3.register_converter"]),
        ("app", "single", []),
        ("events", "events", []),
        ("wsgi", "notebook", []),
        ("app", "pets", []),
    ],
)
def test_the_audit_has_no_false_alarm(
    serve: Serve, tenantry: Tenantry, app: str, folder: str, findings: list[str]
) -> None:
    """`tenantry audit` finds only the converter that the tutorial sets for the whole process."""
    serve(app, folder)

    audit = json.loads(tenantry("audit", "--json").out)

    assert findings == [one["id"] for one in audit["findings"] if one["state"] == "finding"]


@pytest.mark.filterwarnings("ignore:'get_engine' is deprecated")
def test_a_capsule_holds_the_rows_of_an_application(
    serve: Serve, tenantry: Tenantry, tmp_path: Path, settings: HostSettings
) -> None:
    """After `backup` and `restore --as`, the new tenant has the same application and rows."""
    client = serve("wsgi", "notebook")
    folder = str(tmp_path / "project/migrations")
    tenantry("run", "acme", "--", "db", "upgrade", "-d", folder)
    tenantry("run", "acme", "--", "add-user")
    data = {"text": "A note", "csrf_token": token_in(log_in(client, "/acme"))}
    client.post("/acme/", data=data)

    saved = tenantry("backup", "acme", "acme.capsule")
    restored = tenantry("restore", "acme.capsule", "--as", "initech")

    assert (0, 0) == (saved.code, restored.code), (saved.err, restored.err)
    with closing(Host(settings.model_copy(update={"app_dir": tmp_path / "project"}))) as other:
        other.load()
        assert "<li>A note</li>" in log_in(BufferedClient(other), "/initech").text
