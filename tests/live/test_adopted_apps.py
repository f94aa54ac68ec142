"""`tenantry adopt` finds what crosses between tenants of an application, and changes nothing real.

Each application has the layout that people write, and at most one crossing.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import redis_server
from commands import Tenantry

pytestmark = pytest.mark.live

APPS = Path(__file__).parents[1] / "apps"

HEAD = """
import json, locale, os, signal, socket, sqlite3, subprocess, sys, threading, time
from pathlib import Path
from flask import Flask

HERE = Path(__file__).parent
app = Flask(__name__)
"""

VIEW = """
@app.get("/")
def index():
    {}
    return "welcome"
"""

LINK = """
@app.get("/")
def index():
    return '<link rel="stylesheet" href="/static/x.css">'
"""


@pytest.fixture(autouse=True)
def _nothing_left(
    tenants_dir: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Fail a test after which a throw-away folder, data or a process of the application is left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield
    left = [*temporary.iterdir(), *tenants_dir.iterdir(), *data_dir.glob("*")]
    assert ([], []) == (left, _processes("sleep\0987"))


def _processes(command: str) -> list[str]:
    """Return the IDs of the processes that run a command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has ended
            if path.read_bytes().startswith(command.encode()):
                found.append(path.parent.name)
    return found


@pytest.mark.parametrize(
    ("text", "fit", "found"),
    [
        (f"{HEAD}json.CARTS = CARTS = {{}}{VIEW.format('CARTS[1] = 2')}", 1, r"json\.CARTS"),
        (HEAD + VIEW.format('sqlite3.connect("/srv/x.db")'), 0, r"database /srv/x\.db itself"),
        (HEAD + VIEW.format('sqlite3.connect(HERE / "shop.db")'), 0, r"apps/shop\.py:11: opens"),
        (HEAD + '(HERE / "uploads").mkdir(exist_ok=True)', 0, r"creates the folder apps/uploads"),
        (
            HEAD + 'app.config["UPLOAD_FOLDER"] = HERE / "up"'
            + VIEW.format('(app.config["UPLOAD_FOLDER"] / "x").write_text("x")'),
            0, r"writes apps/up/x.*\n.*in each tenant file, set UPLOAD_FOLDER",
        ),
        (HEAD + 'open("shop.log", "a")', 0, r"cannot be a tenant: while it is built, it changes"),
        (HEAD + "threading.Timer(987, print).start()", 1, r"starts a thread"),
        (HEAD + "if os.fork() == 0: time.sleep(987)", 1, r"starts a process with os\.fork"),
        (HEAD + "os.fork()", 1, r"starts a process with os\.fork"),
        (HEAD + 'os.chdir("/usr")', 1, r"changes the current folder to /usr"),
        (HEAD + 'sys.path.insert(0, "/srv/lib")', 1, r"sys\.path\) to /srv/lib"),
        (HEAD + "socket.setdefaulttimeout(7)", 1, r"changes the default timeout of sockets"),
        (HEAD + 'os.environ["SHOP_MODE"] = "x"', 1, r"shop\.py:8: sets .* SHOP_MODE"),
        (HEAD + "signal.signal(signal.SIGTERM, print)", 0, r"changes the handler of SIGTERM"),
        (HEAD + 'socket.create_server(("", 0))', 0, r"listens on"),
        (HEAD + LINK, 0, r"without the URL prefix: <link> /static/x\.css"),
        (HEAD + "assert not hasattr(json, 'SHOP'); json.SHOP = 1", 1, r"a second one in the same"),
        ("import sys; sys.exit(3)", 0, r"SystemExit: 3"),
        ("import os; os._exit(3)", 0, r"it ends its process \(exit code 3\)"),
        ("import ctypes; ctypes.string_at(0)", 0, r"it ends its process \(SIGSEGV\)"),
        ("while True: pass", 0, r"does not finish in 10 s"),
        (HEAD + 'os.environ["SHOP_API_KEY"]', 0, r"needs the environment variable SHOP_API_KEY"),
        (HEAD + VIEW.format("sys.exit(3)"), 0, r"the request GET /, it raises SystemExit: 3"),
    ],
)  # fmt: skip
def test_one_crossing(tenantry: Tenantry, tmp_path: Path, text: str, fit: int, found: str) -> None:
    """One crossing is found, and the verdict says whether a process of its own would help."""
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps/shop.py").write_text(text)

    result = tenantry("adopt", "shop", "--app-dir", "apps")

    assert (1, "") == (result.code, result.err)
    assert fit == ("only with ISOLATION = 'process'" in result.out), result.out
    assert re.search(found, result.out), result.out
    assert ["shop.py"] == [path.name for path in (tmp_path / "apps").iterdir()]


def test_a_store_that_all_tenants_would_share(tenantry: Tenantry, tmp_path: Path) -> None:
    """An application that uses Redis itself uses the same keys for each tenant."""
    with redis_server.running() as redis:
        code = f"import redis\nCACHE = redis.from_url({redis.url!r})"
        text = HEAD + code + VIEW.format("CACHE.incr('visits')")
        (tmp_path / "shop.py").write_text(text)

        result = tenantry("adopt", "shop")

    assert 1 == result.code
    assert f"connects to 127.0.0.1:{redis.port} itself; all tenants" in result.out


CACHE = """
from flask import Flask
from flask_caching import Cache

app = Flask(__name__)
app.config.update({config})
cache = Cache(app)
"""


def test_a_cache_that_all_tenants_would_share(tenantry: Tenantry, tmp_path: Path) -> None:
    """A cache in Redis with one prefix is found, with the line for the tenant file."""
    with redis_server.running() as redis:
        config = f"CACHE_TYPE='RedisCache', CACHE_REDIS_URL={redis.url!r}, CACHE_KEY_PREFIX='shop'"
        (tmp_path / "shop.py").write_text(CACHE.format(config=config))

        result = tenantry("adopt", "shop")

    assert 1 == result.code
    assert "share the entries of a cache" in result.out
    assert "in the tenant file: CACHE_KEY_PREFIX = " in result.out


def test_a_cache_folder_that_all_tenants_would_share(tenantry: Tenantry, tmp_path: Path) -> None:
    """A cache in one folder is found, and the remedy names the key for the tenant file."""
    config = "CACHE_TYPE='FileSystemCache', CACHE_DIR='cache'"
    (tmp_path / "shop.py").write_text(CACHE.format(config=config))

    result = tenantry("adopt", "shop")

    assert 1 == result.code
    assert "creates the folder cache;" in result.out
    assert "in each tenant file, set CACHE_DIR to a path" in result.out
    assert not (tmp_path / "cache").exists()


FITS = """
import tempfile
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
db = SQLAlchemy()
class Item(db.Model):
    id = db.Column(db.Integer, primary_key=True)
def create_app():
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///shop.db"
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/x", "w") as file:
        file.write("x")
    db.init_app(app)
    with app.app_context():
        db.create_all()
    app.add_url_rule("/", "index", lambda: str(Item.query.count()))
    return app
"""


@pytest.mark.parametrize(
    ("app", "folder"),
    [
        ("flaskr", "tutorial"),
        ("app", "single"),
        ("events", "events"),
        ("app", "pets"),
        ("notebook:create_app", "notebook"),
        ("shop", ""),
    ],
)
def test_an_application_that_fits(
    tenantry: Tenantry, tmp_path: Path, app: str, folder: str
) -> None:
    """Applications in common layouts can be tenants as they are."""
    (tmp_path / "shop.py").write_text(FITS)

    result = tenantry("adopt", app, "--app-dir", str(APPS / folder if folder else tmp_path))

    assert (0, "") == (result.code, result.err), result.out
    assert result.out.startswith(f"{app} can be a tenant as it is.\n")


def test_much_output_programs_and_variables(tenantry: Tenantry, tmp_path: Path) -> None:
    """Output is not shown, programs are ended, and variables are noted without their values."""
    code = """
print("x" * 5_000_000)
subprocess.Popen(["sleep", "987"], start_new_session=True)
os.getenv("PATH"), os.environ.get("SHOP_COLOR", "red")
"""
    (tmp_path / "shop.py").write_text(HEAD + code)

    result = tenantry("adopt", "shop")

    assert (0, "") == (result.code, result.err), result.out
    assert "starts the program sleep (shop.py:10)." in result.out
    assert "reads the environment variable PATH, with the same value" in result.out
    assert "looks for the environment variable SHOP_COLOR, which" in result.out
