"""What the command `tests/extensions/try_all.py` tries with each Flask extension.

Each case is the code of an endpoint, which initializes the extension as its documentation says, and
requests to the endpoint. Both tenants send each request before either sends the next one, so a
value that crosses is noticed.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One extension.

    In texts of requests and responses, `{name}` is the tenant's name.
    """

    code: str
    """Code of the endpoint's `blueprint.py`, in which `shop_bp` is the blueprint."""
    steps: tuple[tuple[str, str], ...]
    """Pairs of a path, and a part of the response to a GET on the path."""
    keys: dict[str, object] = field(default_factory=dict)
    """Keys of the tenant file."""
    installs: tuple[str, ...] = ()
    """Further packages that the case needs."""


INIT = "\nshop_bp.record_once(lambda state: ext.init_app(state.app))\n"

USERS = """
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user
from flask_login import user_logged_in
class User(UserMixin):
    def __init__(self, id): self.id = id
login = LoginManager()
login.user_loader(User)
shop_bp.record_once(lambda state: login.init_app(state.app))
"""

CASES: dict[str, Case] = {
    "Flask-SQLAlchemy": Case(
        """
from flask_sqlalchemy import SQLAlchemy
ext = SQLAlchemy()
class Note(ext.Model):
    id = ext.Column(ext.Integer, primary_key=True)
    text = ext.Column(ext.String)
@shop_bp.get("/put/<text>")
def put(text):
    ext.create_all()
    ext.session.add(Note(text=text))
    ext.session.commit()
    return "stored"
@shop_bp.get("/all")
def all_():
    return ",".join(note.text for note in Note.query.all())
"""
        + INIT,
        (("/put/{name}", "stored"), ("/all", "{name}")),
    ),
    "Flask-SQLAlchemy-Lite": Case(
        """
from flask_sqlalchemy_lite import SQLAlchemy
from sqlalchemy import text
ext = SQLAlchemy()
@shop_bp.get("/put/<note>")
def put(note):
    ext.session.execute(text("CREATE TABLE IF NOT EXISTS notes (note TEXT)"))
    ext.session.execute(text("INSERT INTO notes VALUES (:note)"), {"note": note})
    ext.session.commit()
    return "stored"
@shop_bp.get("/all")
def all_():
    return ",".join(ext.session.scalars(text("SELECT note FROM notes")))
"""
        + INIT,
        (("/put/{name}", "stored"), ("/all", "{name}")),
    ),
    "Flask-Migrate": Case(
        """
from flask import current_app
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
db, ext = SQLAlchemy(), Migrate()
shop_bp.record_once(lambda state: (db.init_app(state.app), ext.init_app(state.app, db)))
@shop_bp.get("/url")
def url():
    return str(current_app.extensions["migrate"].db.engine.url)
""",
        (("/url", "/{name}/{name}.sqlite3"),),
        installs=("Flask-SQLAlchemy",),
    ),
    "Flask-Login": Case(
        USERS
        + """
heard = []
@user_logged_in.connect
def note(sender, user, **_):
    heard.append(user.id)
@shop_bp.get("/login/<id>")
def log_in(id):
    login_user(User(id), remember=True)
    return "in"
@shop_bp.get("/who")
@login_required
def who():
    return f"{current_user.id} {heard}"
""",
        (("/login/{name}", "in"), ("/who", "{name} ['{name}']")),
    ),
    "Flask-WTF": Case(
        """
from flask_wtf import CSRFProtect, FlaskForm
from flask_wtf.csrf import generate_csrf
from wtforms import StringField
ext = CSRFProtect()
class NoteForm(FlaskForm):
    text = StringField()
@shop_bp.get("/form")
def form():
    return str(NoteForm().csrf_token)
"""
        + INIT,
        (("/form", "csrf_token"),),
    ),
    "Flask-Session": Case(
        """
from cachelib import FileSystemCache
from flask import session
from flask_session import Session
ext = Session()
@shop_bp.record_once
def set_up(state):
    state.app.config["SESSION_TYPE"] = "cachelib"
    state.app.config["SESSION_CACHELIB"] = FileSystemCache(state.app.instance_path + "/sessions")
    ext.init_app(state.app)
@shop_bp.get("/put/<text>")
def put(text):
    session["text"] = text
    return "stored"
@shop_bp.get("/all")
def all_():
    return session["text"]
""",
        (("/put/{name}", "stored"), ("/all", "{name}")),
        installs=("cachelib", "msgspec"),
    ),
    "Flask-Caching": Case(
        """
from flask_caching import Cache
ext = Cache()
@shop_bp.get("/put/<text>")
def put(text):
    ext.set("text", text)
    return "stored"
@shop_bp.get("/all")
def all_():
    return ext.get("text")
"""
        + INIT,
        (("/put/{name}", "stored"), ("/all", "{name}")),
        {"CACHE_TYPE": "FileSystemCache"},
    ),
    "Flask-Limiter": Case(
        """
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
ext = Limiter(get_remote_address, storage_uri="memory://")
@shop_bp.get("/limited")
@ext.limit("2/hour")
def limited():
    return "answered"
"""
        + INIT,
        (("/limited", "answered"), ("/limited", "answered"), ("/limited", "2 per 1 hour")),
    ),
    "Flask-Cors": Case(
        """
from flask_cors import CORS
ext = CORS()
@shop_bp.get("/open")
def open_():
    return "open"
"""
        + INIT,
        (("/open", "open"),),
    ),
    "Flask-Mail": Case(
        """
from flask_mail import Mail, Message
ext = Mail()
@shop_bp.get("/mail")
def mail():
    with ext.record_messages() as outbox:
        ext.send(Message("hello", recipients=["a@example.org"]))
    return f"{len(outbox)} from {outbox[0].sender}"
"""
        + INIT,
        (("/mail", "1 from {name}@example.org"),),
        {"MAIL_DEFAULT_SENDER": "{name}@example.org", "MAIL_SUPPRESS_SEND": True},
        ("blinker",),
    ),
    "Flask-Admin": Case(
        """
from flask_admin import Admin, AdminIndexView, BaseView, expose
class NotesView(BaseView):
    @expose("/")
    def index(self):
        from flask import current_app
        return current_app.config["APP_NAME"]
@shop_bp.record_once
def set_up(state):
    ext = Admin(state.app, name=state.app.config["APP_NAME"])
    ext.add_view(NotesView(name="Notes", endpoint="notes"))
""",
        (("/admin/notes/", "{name}"), ("/admin/", "{name}")),
    ),
    "Flask-Principal": Case(
        """
from flask import current_app
from flask_principal import Identity, Permission, Principal, RoleNeed
from flask_principal import identity_changed, identity_loaded
ext = Principal()
heard = []
@identity_loaded.connect
def provide(sender, identity):
    heard.append(identity.id)
    identity.provides.add(RoleNeed("editor"))
@shop_bp.get("/login/<id>")
def log_in(id):
    identity_changed.send(current_app._get_current_object(), identity=Identity(id))
    return "in"
@shop_bp.get("/edit")
@Permission(RoleNeed("editor")).require(403)
def edit():
    return str(sorted(set(heard)))
"""
        + INIT,
        (("/login/{name}", "in"), ("/edit", "['{name}']")),
    ),
    "Flask-JWT-Extended": Case(
        """
from flask import request
from flask_jwt_extended import JWTManager, create_access_token, decode_token
ext = JWTManager()
@shop_bp.get("/token")
def token():
    return decode_token(create_access_token(identity="ada"))["sub"]
"""
        + INIT,
        (("/token", "ada"),),
    ),
    "flask-smorest": Case(
        """
from flask_smorest import Api, Blueprint as ApiBlueprint
from marshmallow import Schema, fields
class Author(Schema):
    name = fields.Str()
    books = fields.List(fields.Nested("Book"))
class Book(Schema):
    title = fields.Str()
authors = ApiBlueprint("authors", __name__, url_prefix="/authors")
@authors.get("/")
@authors.response(200, Author)
def get_author():
    from flask import current_app
    return {"name": current_app.config["APP_NAME"], "books": [{"title": "one"}]}
@shop_bp.record_once
def set_up(state):
    Api(state.app).register_blueprint(authors)
""",
        (("/authors/", "{name}"),),
        {"API_TITLE": "Shop", "API_VERSION": "v1", "OPENAPI_VERSION": "3.0.2"},
    ),
    "Flask-Marshmallow": Case(
        """
from flask_marshmallow import Marshmallow
ext = Marshmallow()
class Book(ext.Schema):
    title = ext.Str()
class Author(ext.Schema):
    books = ext.Nested("Book", many=True)
@shop_bp.get("/author")
def author():
    return Author().dump({"books": [{"title": "one"}]})
"""
        + INIT,
        (("/author", "one"),),
    ),
    "Flask-Babel": Case(
        """
from flask_babel import Babel, get_locale
ext = Babel()
@shop_bp.get("/locale")
def locale():
    return f"locale {get_locale()}"
@shop_bp.record_once
def set_up(state):
    ext.init_app(state.app, locale_selector=lambda: state.app.config["LOCALE"])
""",
        (("/locale", "locale en"),),
        {"LOCALE": "en"},
    ),
    "Flask-Talisman": Case(
        """
from flask_talisman import Talisman
ext = Talisman()
@shop_bp.get("/safe")
def safe():
    return "safe"
@shop_bp.record_once
def set_up(state):
    ext.init_app(state.app, force_https=False)
""",
        (("/safe", "safe"),),
    ),
    "Flask-Compress": Case(
        """
from flask_compress import Compress
ext = Compress()
@shop_bp.get("/long")
def long():
    return "long" * 1000
"""
        + INIT,
        (("/long", "long"),),
    ),
    "Flask-SocketIO": Case(
        """
from flask_socketio import SocketIO
ext = SocketIO(async_mode="threading")
@ext.on("note")
def note(text):
    return text
@shop_bp.get("/socket")
def socket():
    from flask import current_app
    client = ext.test_client(current_app._get_current_object())
    return str(client.emit("note", current_app.config["APP_NAME"], callback=True))
"""
        + INIT,
        (("/socket", "{name}"),),
    ),
    "Flask-HTTPAuth": Case(
        """
from flask_httpauth import HTTPTokenAuth
ext = HTTPTokenAuth()
@ext.verify_token
def verify(token):
    from flask import current_app
    return current_app.config["APP_NAME"]
@shop_bp.get("/who")
@ext.login_required
def who():
    return ext.current_user()
""",
        (("/who", "{name}"),),
    ),
    "Flask-Bcrypt": Case(
        """
from flask_bcrypt import Bcrypt
ext = Bcrypt()
@shop_bp.get("/hash")
def hash_():
    return str(ext.check_password_hash(ext.generate_password_hash("word", 4), "word"))
"""
        + INIT,
        (("/hash", "True"),),
    ),
    "flask-restx": Case(
        """
from flask_restx import Api, Resource
ext = Api(prefix="/api")
ext.init_app(shop_bp, add_specs=False)
@ext.route("/name")
class Name(Resource):
    def get(self):
        from flask import current_app
        return current_app.config["APP_NAME"]
""",
        (("/api/name", "{name}"),),
    ),
    "Flask-Dance": Case(
        """
from flask_dance.contrib.github import make_github_blueprint
@shop_bp.record_once
def set_up(state):
    ext = make_github_blueprint(client_id=state.app.config["APP_NAME"], client_secret="s")
    state.app.register_blueprint(ext, url_prefix="/oauth")
""",
        (("/oauth/github", "client_id={name}"),),
    ),
    "Authlib": Case(
        """
from authlib.integrations.flask_client import OAuth
from flask import current_app
ext = OAuth()
@shop_bp.record_once
def set_up(state):
    ext.init_app(state.app)
    ext.register("idp", client_id=state.app.config["APP_NAME"])
@shop_bp.get("/client")
def client():
    return ext.idp.client_id
""",
        (("/client", "{name}"),),
        installs=("requests",),
    ),
    "Flask-APScheduler": Case(
        """
from flask_apscheduler import APScheduler
ext = APScheduler()
def job(): pass
@shop_bp.record_once
def set_up(state):
    ext.init_app(state.app)
    ext.add_job("job", job, trigger="interval", hours=1)
@shop_bp.get("/jobs")
def jobs():
    return str([one.func_ref for one in ext.get_jobs()])
""",
        (("/jobs", "@{name}"),),
    ),
    "Flask-Moment": Case(
        """
from flask import render_template_string
from flask_moment import Moment
ext = Moment()
@shop_bp.get("/now")
def now():
    return render_template_string("{{ moment().calendar() }}")
"""
        + INIT,
        (("/now", "flask-moment"),),
    ),
    "Bootstrap-Flask": Case(
        """
from flask import render_template_string
from flask_bootstrap import Bootstrap5
ext = Bootstrap5()
@shop_bp.get("/page")
def page():
    return render_template_string("{{ bootstrap.load_css() }}")
"""
        + INIT,
        (("/page", "bootstrap"),),
    ),
    "Flask-Reuploaded": Case(
        """
from io import BytesIO
from flask_uploads import UploadSet, configure_uploads
from werkzeug.datastructures import FileStorage
photos = UploadSet("photos", ("txt",))
shop_bp.record_once(lambda state: configure_uploads(state.app, photos))
@shop_bp.get("/put/<text>")
def put(text):
    return photos.save(FileStorage(BytesIO(text.encode()), "note.txt"), name="note.txt")
@shop_bp.get("/all")
def all_():
    with open(photos.path("note.txt")) as file:
        return file.read()
""",
        (("/put/{name}", "note.txt"), ("/all", "{name}")),
    ),
    "prometheus-flask-exporter": Case(
        """
from prometheus_client import CollectorRegistry
from prometheus_flask_exporter import PrometheusMetrics
@shop_bp.record_once
def set_up(state):
    PrometheusMetrics(state.app, path="/metrics-of-app", registry=CollectorRegistry())
@shop_bp.get("/<name>")
def visit(name):
    return name
""",
        (("/{name}", "{name}"), ("/metrics-of-app", 'path="/{name}"')),
    ),
    "Celery": Case(
        """
from celery import Celery, Task, shared_task
def celery_init_app(app):
    class FlaskTask(Task):
        def __call__(self, *args, **kwargs):
            with app.app_context():
                return self.run(*args, **kwargs)
    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
@shared_task(ignore_result=False)
def add(a, b):
    return a + b
shop_bp.record_once(lambda state: celery_init_app(state.app))
@shop_bp.get("/task")
def task():
    return f"{add.name} at {add.app.conf.broker_url}"
""",
        (("/task", "corp@{name}.shop.blueprint.add at memory://{name}"),),
        {"CELERY": {"broker_url": "memory://{name}"}},
    ),
}
"""The extensions, by the name of their distribution."""

IN_TEST_EXTRA = (
    "Celery",
    "Flask-Caching",
    "Flask-Limiter",
    "Flask-Login",
    "Flask-Migrate",
    "Flask-Reuploaded",
    "Flask-SQLAlchemy",
    "Flask-SQLAlchemy-Lite",
    "Flask-Session",
    "Flask-WTF",
)
"""The extensions that the default environment of the tests contains."""
