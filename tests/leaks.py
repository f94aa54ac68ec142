"""Writes endpoints and tenant files that leak data between tenants, each in one way.

Tests check that the audit finds each leak. The leaking line ends in `# leak`, so that a test can
compare it with the line in the audit's finding.
"""

from pathlib import Path

from tenantry.tenants.clients import hash_client_key

KEY = "0123456789abcdef0123456789abcdef"
SAME = "same-" + KEY

BLUEPRINT = """\
from flask import Blueprint
from flask_restful import Api
from .resources import Page
from . import models

{name}_bp = Blueprint("{name}", __name__)
Api({name}_bp).add_resource(Page, "/{name}/")
"""

RESOURCES = """\
from flask_restful import Resource
from .models import PageModel

cache = {}  # each app has its own


class Page(Resource):
    def get(self):
        return PageModel().answer()
"""

MODELS = """\
__shared__ = True
class PageModel:
    def answer(self): return 1
"""


def in_function(line: str, imports: str = "") -> str:
    """Return the text of a module with a function that contains the given line, which leaks."""
    return f"{imports}\n\n\ndef keep(value):\n    {line}  # leak\n"


def cached(decorator: str) -> str:
    """Return the text of a class with a cached function behind a descriptor."""
    return (
        "import functools\n\n\nclass Price:\n"
        f"    @{decorator}\n    @functools.lru_cache\n    def of(name): ...  # leak\n"
    )


COUNTER = """\
def counter():
    seen = []
    def count():  # leak
        seen.append(1)
    return count


count = counter()
"""

NONLOCAL = """\
def counter():
    seen = 0
    def count():  # leak
        nonlocal seen
        seen += 1
        return seen
    return count


count = counter()
"""

REBOUND = """\
last = None


def keep(value):
    global last
    last = value  # leak
"""

SET_ATTRIBUTE = """\
class Basket:
    pass


def keep(value):
    setattr(Basket, "last", value)  # leak
"""

IN_MODELS = {
    "dictionary": ("_cache", "_cache = {}  # leak"),
    "attribute": ("Basket.items", "class Basket:\n    items = []  # leak"),
    "cached": ("price", "import functools\n@functools.cache\ndef price(name): ...  # leak"),
    "static": ("Price.of", cached("staticmethod")),
    "class_cached": ("Price.of", cached("classmethod")),
    "property_": ("Price.of", cached("property")),
    "array_": ("buffer", "import array\nbuffer = array.array('i', [0])  # leak"),
    "mmap_": ("memory", "import mmap\nmemory = mmap.mmap(-1, 16)  # leak"),
    "default": ("note", "def note(seen=[]): ...  # leak"),
    "closure": ("counter.count", COUNTER),
    "bound": ("remember", "remember = [].append  # leak"),
    "rebound": ("last", REBOUND),
    "local": ("_local", "import threading\n_local = threading.local()  # leak"),
    "lock": ("_lock", "import threading\n_lock = threading.Lock()  # leak"),
    "nonlocal_": ("counter.count", NONLOCAL),
    "enum_": ("Shelf.TOP", "import enum\nclass Shelf(enum.Enum):\n    TOP = []  # leak"),
    "context": (
        "basket",
        "from contextvars import ContextVar\nbasket = ContextVar('basket', default=[])  # leak",
    ),
    "function": ("keep.calls", in_function("keep.calls = 1")),
    "setting": ("Basket.last", SET_ATTRIBUTE),
    "globals_": ("last", in_function("globals()['last'] = value")),
}
"""Maps each endpoint to the name that the audit must report, and to the content of `models.py`."""

HANDLER = """\
import logging

from flask import request_started


class Heard(logging.Handler):
    def emit(self, record):
        pass


def add(sender, **_):
    logging.getLogger().addHandler(Heard())  # leak


request_started.connect(add)
"""

HOLDING = """\
import sys

others = [m for n, m in sys.modules.items() if n.endswith("holding.blueprint")][:1]  # leak
"""

METRIC = """\
import prometheus_client as it

seen = it.REGISTRY._names_to_collectors.get("planted") or it.Counter("planted", "Its.")  # leak
"""

LIBRARY = """\
import flask_restful

flask_restful.Resource.representations = None  # leak
"""

LATER = """\
def keep(value):
    from . import models
    models.last = value  # leak
"""

INHERITED = """\
class Extended(Page):
    def get(self):
        self.decorators.append(repr)  # leak
"""

IMPORTED_LATE = """\
def keep(value):
    from jinja2.defaults import DEFAULT_TESTS as tests
    tests.update(last=value)  # leak
"""

QUIET = """\
import warnings


def keep(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
    warnings.simplefilter(value)  # leak
"""

ALARM = """\
def keep(value):
    from signal import alarm
    alarm(value)  # leak
"""

ROOT_LEVEL = """\
import logging


def keep(value):
    logging.getLogger(__name__).setLevel(value)
    logging.getLogger().setLevel(value)  # leak
"""

LEVEL = """\
import logging

_log = logging.getLogger("sqlalchemy.engine")


def keep(value):
    _log.setLevel(value)  # leak
"""

SILENT = """\
import logging


def keep():
    logging.root.handlers.clear()
    logging.getLogger("werkzeug").disabled = True  # leak
"""

IN_RESOURCES = {
    "handlers": ("shared:log-handler-of-root", HANDLER),
    "peeking": (
        "reaches:peeking.resources.sys.modules",
        in_function("return [name for name in sys.modules if '@' in name]", "import sys"),
    ),
    "holding": ("reaches:holding.resources.others", HOLDING),
    "far": (
        "reaches:far.resources.sys.modules",
        in_function("return log.sys.modules", "import logging as log"),
    ),
    "later": ("shared:later.models.last", LATER),
    "class_": ("shared:class_.models.PageModel.last", in_function("PageModel.last = value")),
    "library": ("shared:flask_restful.Resource.representations", LIBRARY),
    "appended": (
        "shared:flask_restful.Resource.method_decorators",
        in_function("Resource.method_decorators.append(value)"),
    ),
    "inherited": ("shared:flask.views.View.decorators", INHERITED),
    "filters": (
        "shared:jinja2.defaults.DEFAULT_FILTERS",
        in_function("jinja2.defaults.DEFAULT_FILTERS['last'] = value", "import jinja2.defaults"),
    ),
    "tests": ("shared:jinja2.defaults.DEFAULT_TESTS", IMPORTED_LATE),
    "searched": ("process:sys.path", in_function("sys.path.append(value)", "import sys")),
    "quiet": ("process:warnings.simplefilter", QUIET),
    "types": (
        "process:mimetypes.add_type",
        in_function("known('text/plain', value)", "from mimetypes import add_type as known"),
    ),
    "alarm": ("process:signal.alarm", ALARM),
    "environb": ("process:os.environb", in_function("os.environb[b'LAST'] = value", "import os")),
    "metric": ("shared:metric.resources.seen", METRIC),
    "logging_": (
        "process:logging.config.dictConfig",
        in_function("logging.config.dictConfig(value)", "import logging.config"),
    ),
    "logging_file": (
        "process:logging.config.fileConfig",
        in_function("config.fileConfig(value)", "from logging import config"),
    ),
    "root_level": ("process:logger-root", ROOT_LEVEL),
    "level": ("process:logger-sqlalchemy.engine", LEVEL),
    "silent": ("process:logger-werkzeug", SILENT),
    "process": (
        "process:os.environ",
        in_function("environ['LAST'] = value", "from os import environ"),
    ),
}
"""Maps each endpoint to the ID of the finding that the audit must report, and to its code."""

DISPATCH = "import functools\n\n\n@functools.singledispatch\ndef render(value): ...  # leak\n"
USING_DISPATCH = "from .models import render\n\nuse = [render]\n"

EXTENSION = "class Store(dict):\n    pass\n\n\nstore = Store()  # leak\n"

EXTENDING = """\
from corp.store import store


def remember(state):
    state.app.extensions["store"] = store


extending_bp.record_once(remember)
"""

SESSIONS = """\
from flask.sessions import SecureCookieSessionInterface


def plain(state):
    state.app.session_interface = SecureCookieSessionInterface()


sessions_bp.record_once(plain)
"""

UNSAFE = """\
from werkzeug.debug import DebuggedApplication


def spoil(state):
    state.app.debug = True
    state.app.config["PROPAGATE_EXCEPTIONS"] = True
    state.app.wsgi_app = DebuggedApplication(state.app.wsgi_app)


unsafe_bp.record_once(spoil)
"""

STORED = """\
from cachelib.file import FileSystemCache
from flask_session import Session


def store(state):
    state.app.config["SESSION_TYPE"] = "cachelib"
    state.app.config["SESSION_KEY_PREFIX"] = "session:"
    state.app.config["SESSION_CACHELIB"] = FileSystemCache("sessions")
    Session(state.app)


stored_bp.record_once(store)
"""

CACHED = """\
from flask_caching import Cache

cache = Cache(config={"CACHE_TYPE": "RedisCache", "CACHE_KEY_PREFIX": "shop:"})
caching_bp.record_once(lambda state: cache.init_app(state.app))
"""

LIMITED = """\
from flask import request
from flask_limiter import Limiter

limiter = Limiter(lambda: request.remote_addr, key_prefix="shop")
limited_bp.record_once(lambda state: limiter.init_app(state.app))
"""

LOG_FILE = """\
from logging.handlers import RotatingFileHandler

logged_bp.record_once(
    lambda state: state.app.logger.addHandler(RotatingFileHandler("app.log"))
)
"""

UPLOADS = """\
import os

os.makedirs("uploads", exist_ok=True)
"""

CROSSING = {
    "stored": ({"replay:session", "replay:flash", "shared-file:sessions"}, STORED),
    "caching": ({"shared-store:cache"}, CACHED),
    "limited": ({"shared-store:rate-limiter"}, LIMITED),
    "logged": ({"shared-file:app.log"}, LOG_FILE),
    "uploading": ({"shared-file:uploads"}, UPLOADS),
}
"""Endpoint → IDs of the findings that the audit must report, and the code in `blueprint.py`."""


IN_SCHEMA = "options=-csearch_path%3D"
ISSUER = {"issuer": "https://login.example.org", "audience": "shop"}


def settings_of_acme() -> dict[str, object]:
    """Return keys of the tenant acme that a second tenant also uses, although it must not."""
    return {
        "CLIENTS": {"web": hash_client_key(KEY)},
        "OIDC": ISSUER,
        "SQLALCHEMY_BINDS": {
            "schema": f"postgresql://a:x@localhost/x?{IN_SCHEMA}acme",
            "public": f"postgresql://a:x@localhost/y?{IN_SCHEMA}public",
            "apart": f"postgresql://a:x@localhost/x?{IN_SCHEMA}apart",
            "late": {"url": "postgresql://a:x@localhost/late"},
        },
        "EXPORT_FOLDER": "exports",
        "UPLOAD_PATH": "/srv/uploads",
        "EVENTS_REDIS_URL": "redis://localhost",
        "QUEUE_REDIS_URL": "redis://localhost/1",
        "QUEUE_KEY_PREFIX": "acme:",
        "STATIC_FOLDER": "static",
    }


def unsafe_settings(data_dir: Path) -> dict[str, tuple[str, object]]:
    """Map the ID of each finding to an unsafe setting: a key and its value."""
    acme = str(data_dir / "acme")
    binds = {
        "old": f"sqlite:///{acme}/acme.sqlite3",
        "schema": f"postgresql://b:y@127.0.0.1:5432/x?{IN_SCHEMA}acme",
        "public": "postgresql://b:y@localhost/y",
        "apart": f"postgresql://a:x@localhost/x?{IN_SCHEMA}else",
        "late": {"url": "postgresql+psycopg://b:y@localhost:5432/late"},
    }
    return {
        "weak-key:SECRET_KEY": ("SECRET_KEY", "ab" * 16),
        "weak-key:SECRET_KEY_FALLBACKS-0": ("SECRET_KEY_FALLBACKS", ["ba" * 16]),
        "wide-cookie:SESSION_COOKIE_DOMAIN": ("SESSION_COOKIE_DOMAIN", "example.org"),
        "wide-cookie:SESSION_COOKIE_PATH": ("SESSION_COOKIE_PATH", "/acme"),
        "readable-cookie": ("SESSION_COOKIE_HTTPONLY", False),
        "cross-site-cookie": ("SESSION_COOKIE_SAMESITE", "None"),
        "shared-cookie-name:SESSION_COOKIE_NAME": ("SESSION_COOKIE_NAME", "session_acme"),
        "foreign-folder:UPLOAD_FOLDER": ("UPLOAD_FOLDER", f"{acme}/files"),
        "shared-database:DATABASE_URI": ("SQLALCHEMY_BINDS", binds),
        "shared-database:SQLALCHEMY_BINDS-schema": ("SQLALCHEMY_BINDS", binds),
        "shared-database:SQLALCHEMY_BINDS-public": ("SQLALCHEMY_BINDS", binds),
        "shared-database:SQLALCHEMY_BINDS-late": ("SQLALCHEMY_BINDS", binds),
        "shared-folder:EXPORT_FOLDER": ("EXPORT_DIR", str(Path.cwd() / "exports")),
        "shared-folder:UPLOAD_PATH": ("UPLOADED_FILES_DEST", "/srv/./uploads"),
        "shared-store:EVENTS_REDIS_URL": ("EVENTS_REDIS_URL", "rediss://:pw@127.0.0.1:6379/0"),
        "shared-client-key:CLIENTS-web": ("CLIENTS", {"else": hash_client_key(KEY)}),
        "shared-token:shop": ("OIDC", ISSUER | {"claims": {"role": "buyer"}}),
    }  # fmt: skip


def write_endpoint(folder: Path, name: str, **files: str) -> str:
    """Write the package `corp.<name>` with text added to its files. Return the package name."""
    package = folder / "corp" / name
    package.mkdir(parents=True)
    (folder / "corp/__init__.py").touch()
    (package / "__init__.py").touch()
    texts = {"models": MODELS, "resources": RESOURCES, "blueprint": BLUEPRINT.format(name=name)}
    for file, text in texts.items():
        (package / f"{file}.py").write_text(text + files.get(file, ""), encoding="utf-8")
    return f"corp.{name}"


def plant_in_code(folder: Path) -> dict[str, str]:
    """Write all endpoints that leak. Map the ID of each finding to the name of the endpoint."""
    planted = {}
    for name, (what, text) in IN_MODELS.items():
        planted[f"shared:{name}.models.{what}"] = write_endpoint(folder, name, models=text)
    for name, (id_, text) in IN_RESOURCES.items():
        planted[id_] = write_endpoint(folder, name, resources=text)
    planted["shared:dispatch.models.render"] = write_endpoint(
        folder, "dispatch", models=DISPATCH, resources=USING_DISPATCH
    )
    planted["shared:corp.store.store"] = write_endpoint(folder, "extending", blueprint=EXTENDING)
    (folder / "corp/store.py").write_text(EXTENSION, encoding="utf-8")
    return planted


def plant_crossings(folder: Path) -> dict[str, set[str]]:
    """Write all endpoints that share a store or files. Return name of the endpoint → finding IDs.

    Tenants need the keys of `keys_of_crossings`.
    """
    return {
        write_endpoint(folder, name, blueprint=text): ids for name, (ids, text) in CROSSING.items()
    }


def keys_of_crossings(redis_url: str) -> dict[str, object]:
    """Return the keys of a tenant with the endpoints of `plant_crossings`."""
    return {"CACHE_REDIS_URL": redis_url, "RATELIMIT_STORAGE_URI": redis_url}


def plant_in_files(folder: Path, data_dir: Path) -> dict[str, tuple[str, ...]]:
    """Write tenant files that leak. Map the ID of each finding to the tenants that it must name."""
    sessions = write_endpoint(folder, "sessions", blueprint=SESSIONS)
    unsafe = write_endpoint(folder, "unsafe", blueprint=UNSAFE)
    tenants = folder / "tenants"
    copied = f"SECRET_KEY = {SAME!r}  # leak\nBLUEPRINTS = [{sessions!r}]\n"
    for name in ("copied", "copy"):
        (tenants / f"{name}.py").write_text(copied, encoding="utf-8")
    database = data_dir / "data.sqlite3"
    database.parent.mkdir(parents=True, exist_ok=True)
    database.touch()
    (data_dir / "link.sqlite3").symlink_to(database)
    (data_dir / "two").symlink_to("one", target_is_directory=True)
    (data_dir / "one").mkdir(mode=0o700)
    secret = data_dir / "secrets/TWO_KEY"
    secret.parent.mkdir(mode=0o755)
    secret.write_text("two-0123456789abcdef0123456789ABCDEF")
    secret.chmod(0o644)
    secret.with_name("OTHER_KEY").write_text("nobody's", encoding="utf-8")
    texts = {
        "one": f"SECRET_KEY = {'one-' + KEY!r}\nBLUEPRINTS = ['landing']\n"
        f"DATABASE_URI = 'sqlite:///{database}'\nSESSION_COOKIE_PATH = '/'  # leak\n",
        "two": "from tenantry import secret\nSECRET_KEY = secret('TWO_KEY')\n"
        f"BLUEPRINTS = [{unsafe!r}]\n"
        f"DATABASE_URI = 'sqlite:///{data_dir}/./link.sqlite3'  # leak\n",
    }
    for name, text in texts.items():
        (tenants / f"{name}.py").write_text(text, encoding="utf-8")
    return {
        "replay:session": ("copied", "copy"),
        "replay:flash": ("copied", "copy"),
        "shared-secret:SECRET_KEY": ("copied", "copy"),
        "shared-database:DATABASE_URI": ("one", "two"),
        "shared-folder:data-/one": ("one", "two"),
        "wide-cookie:SESSION_COOKIE_PATH": ("one",),
        "readable-secret:TWO_KEY": ("two",),
        "readable-secret:OTHER_KEY": (),
        "debug": ("two",),
        "debugger": ("two",),
        "propagate-exceptions": ("two",),
    }
