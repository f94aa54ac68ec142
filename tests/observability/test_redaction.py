"""No output, log, file, response or object contains a tenant's secrets.

The tests put a marker into every secret and search for the marker.
"""

import gc
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import IncompleteRead
from pathlib import Path
from typing import Literal

import pytest
import zstandard
from werkzeug.test import Client

import leaks
from conftest import tenant_text
from issuers import Issuer, running_issuer
from servers import Server, free_port, group, running
from tenantry.cli import main
from tenantry.host import Host
from tenantry.observability.control_socket import ask_workers
from tenantry.observability.logging import configure_logging
from tenantry.observability.redaction import MASK
from tenantry.tenants.clients import hash_client_key

MARK = "PLANTED"
TAIL = "0123456789abcdef0123456789abcdef"
CLIENT_KEY = f"tenantry_{MARK}-client-{TAIL}"

FAILING_ENDPOINT = """
import threading

from flask import current_app

NAMES = "SECRET_KEY", "API_TOKEN", "BROKER", "SIGNER", "WORD"

def secrets():
    keys = current_app.config
    return [keys.get(name, "") for name in NAMES] + [keys["MAIL"]["password"]]

@shop_bp.get("/fail")
def fail():
    keys = current_app.config
    raise ValueError("the reason")

@shop_bp.get("/connect")
def connect():
    raise OSError("cannot reach redis://:{mark}/broker@127.0.0.1/0 or http://h/x?api_key={mark}")

@shop_bp.get("/log")
def log():
    for text in secrets():
        current_app.logger.warning("login with %s", text, extra={{"sent": [text]}})
    app = current_app._get_current_object()
    thread = threading.Thread(target=log_later, args=(app,))
    thread.start()
    thread.join()
    raise ValueError("has " + " ".join(secrets()))

def log_later(app):
    with app.app_context():
        app.logger.warning("has %s", secrets())

@shop_bp.get("/end")
def end():
    raise SystemExit(current_app.config["API_TOKEN"])

@shop_bp.get("/stream")
def stream():
    texts = secrets()
    def parts():
        yield "a"
        raise ValueError("has " + " ".join(texts))
    return parts()
"""

REFUSING = """
@refusing_bp.record_once
def log_in(state):
    state.app.logger.warning("login with %s", state.app.config["API_TOKEN"])
    raise ValueError("has " + state.app.config["API_TOKEN"])
"""

LATE = """
@late_bp.record_once
def wrap(state):
    def refuse(environ, start_response):
        raise ValueError("has " + state.app.config["API_TOKEN"])
    state.app.wsgi_app = refuse
"""

PATHS = "fail", "connect", "log", "end", "stream"


def secret_keys(name: str) -> dict[str, object]:
    """Return keys of a tenant file. Each value contains a secret."""
    return {
        "SECRET_KEY": f"{MARK}-{name}-{TAIL}",
        "SECRET_KEY_FALLBACKS": [f"{MARK}-{name}-old-{TAIL}"],
        "CLIENTS": {"web": hash_client_key(CLIENT_KEY), "ended": {
            "key": hash_client_key(f"{CLIENT_KEY}-ended"), "expires": "2020-01-01"}},
        "MAIL": {"server": "localhost", "password": f"{MARK}-mail"},
        "API_TOKEN": f"{MARK}-token",
        "BROKER": f"redis://:{MARK}/broker@127.0.0.1/0",
        "SIGNER": f"-----BEGIN PRIVATE KEY-----\n{MARK}\n-----END PRIVATE KEY-----\n",
        "SENT": [f"Authorization: Bearer {MARK}-sent"],
        "ECHO": f"is {MARK}-{name}-{TAIL}",
    }  # fmt: skip


# -- objects ------------------------------------------------------------------------------------


@pytest.fixture(name="serving")
def _serving(
    corp: Path,
    host: Host,
    write_tenant: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Client:
    """Return a client of a host with one tenant that fails and three that cannot be built."""
    monkeypatch.setenv("ACME_WORD", f"{MARK}-word-{TAIL}")
    shop = leaks.write_endpoint(corp, "shop", blueprint=FAILING_ENDPOINT.format(mark=MARK))
    broken = leaks.write_endpoint(corp, "broken", resources="1 / 0\n")
    oidc = {"issuer": "http://127.0.0.1:9/", "audience": "shop"}
    oidc["jwks_uri"] = f"http://127.0.0.1:9/keys?code={MARK}"
    url = f"postgresql+psycopg://acme:{MARK}-database@127.0.0.1:9/acme"
    text = tenant_text(
        "acme", **secret_keys("acme"), BLUEPRINTS=[shop], OIDC=oidc, DATABASE_URI=url
    )
    write_tenant("acme", f"from tenantry import secret\nWORD = secret('ACME_WORD')\n{text}")
    more = {"CLIENTS": None, "BLUEPRINTS": [broken], "DATABASE_URI": f"{url}2"}
    write_tenant("globex", **secret_keys("globex") | more)
    for name, lines in (("refusing", REFUSING), ("late", LATE)):
        endpoint = leaks.write_endpoint(corp, name, blueprint=lines)
        write_tenant(name, **secret_keys(name) | {"CLIENTS": None, "BLUEPRINTS": [endpoint]})
    host.load()
    return Client(host)


def send_requests(client: Client) -> Client:
    """Send requests that succeed and requests that fail."""
    for headers in (
        {"X-API-Key": CLIENT_KEY},
        {"X-API-Key": f"{CLIENT_KEY}-ended"},
        {"X-API-Key": f"{MARK}-wrong"},
        {"Authorization": f"Bearer {CLIENT_KEY}"},
        {"Authorization": f"Bearer {MARK}.{MARK}.{MARK}"},
    ):
        for path in ("/acme/shop/", "/acme/fail", "/acme/none", "/globex/"):
            client.get(path, headers=headers).close()
    return client


def test_no_object_of_tenantry_prints_a_secret(serving: Client) -> None:
    """After good and failing requests, the `repr` of no object in memory contains a secret."""
    send_requests(serving)

    ours = [each for each in gc.get_objects() if type(each).__module__.startswith("tenantry.")]

    printed = {type(each).__qualname__: repr(each) for each in ours if MARK in repr(each)}
    assert ({}, True) == (printed, len(ours) > 50)


def test_a_stack_with_local_variables_has_no_secret(
    serving: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Tracebacks with local variables, as error reporters send them, contain no secrets."""
    send_requests(serving)

    stacks = [
        "".join(traceback.TracebackException(*each.exc_info, capture_locals=True).format())
        for each in caplog.records
        if each.exc_info and each.exc_info[0]
    ]

    failed = [each for each in stacks if "the reason" in each or "ZeroDivisionError" in each]
    assert [True, True] == [
        any(word in each for each in failed) for word in ("the reason", "1 / 0")
    ]
    assert [] == [line for each in failed for line in each.splitlines() if MARK in line]


@pytest.mark.parametrize("form", ["console", "json"])
def test_what_endpoints_log_is_redacted(
    form: Literal["console", "json"],
    serving: Client,
    host: Host,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Log lines and tracebacks of an endpoint contain no secrets."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure_logging(form, "debug")
    for path in [f"/acme/{each}" for each in PATHS] + ["/refusing/", "/late/"]:
        with (
            suppress(ConnectionError),
            serving.get(path, headers={"X-API-Key": CLIENT_KEY}) as each,
        ):
            assert each.status_code >= 500 or path == "/acme/stream"
    root.handlers[:], level = before
    root.setLevel(level)

    lines = capsys.readouterr().err.splitlines()
    reasons = {each.name: each.explanation for each in host.router.mounts}
    assert [] == [line for line in [*lines, *reasons.values()] if MARK in line]
    assert 6 <= sum("login with ********" in line for line in lines)
    assert 3 <= sum("ValueError: has ********" in line for line in lines)
    assert f"has {MASK}" in reasons["late"]
    assert f"ValueError: has {MASK} (blueprint.py:" in reasons["refusing"]


# -- commands and servers -------------------------------------------------------------------------


class Site:
    """A folder whose secrets all contain a marker, and all output of commands and servers."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.data = folder / "instance"
        self.produced: dict[str, bytes] = {}
        self.environ = {
            "TENANTRY_RATE_LIMIT_STORAGE": f"redis://:{MARK}-limits@127.0.0.1:9/0",
            "TENANTRY_LOG_LEVEL": "debug",
            "TENANTRY_ADMIN_BIND": f"127.0.0.1:{free_port()}",
            "ACME_WORD": f"{MARK}-word-{TAIL}",
            "TMPDIR": str(folder / "scratch"),
        }
        self._capfd = capfd
        for name in ("tenants", "scratch", "instance/secrets"):
            (folder / name).mkdir(parents=True, mode=0o700)

    def write(self, name: str, text: str) -> None:
        """Write a tenant file."""
        (self.folder / f"tenants/{name}.py").write_text(text, encoding="utf-8")

    def run(self, *words: str, **environ: str) -> None:
        """Run a command in the test process. Keep all output, even that of child processes."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (self.environ | environ).items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["tenantry", *words])
            patch.setattr(sys, "path", list(sys.path))
            with pytest.raises(SystemExit):
                main()
        self.keep(" ".join(words), "".join(self._capfd.readouterr()).encode())

    def keep(self, where: str, what: bytes) -> None:
        """Keep the output of a command or a server."""
        self.produced[where] = self.produced.get(where, b"") + what

    def leaks(self) -> dict[str, list[str]]:
        """Return all output lines that contain a secret, by the place where they appeared."""
        for path in sorted(self.folder.rglob("*")):
            is_secret = "secrets" in path.parts or path.is_relative_to(self.folder / "tenants")
            if path.is_file() and not is_secret and path.suffix != ".py":
                self.keep(str(path.relative_to(self.folder)), readable(path.read_bytes()))
        return {
            where: [line.decode("utf-8", "replace") for line in what.splitlines() if hit(line)]
            for where, what in self.produced.items()
            if hit(what)
        }


def hit(data: bytes) -> bool:
    """Whether the data contains a marker."""
    return MARK.encode() in data


def readable(data: bytes) -> bytes:
    """Return the content of a file, decompressed if necessary."""
    with suppress(zstandard.ZstdError):
        return zstandard.ZstdDecompressor().stream_reader(data).read()
    return data


def files(site: Site, database: str, issuer: str) -> None:
    """Write tenant files that are valid, that fail late, and that are rejected for each secret."""
    shop = leaks.write_endpoint(site.folder, "shop", blueprint=FAILING_ENDPOINT.format(mark=MARK))
    broken = leaks.write_endpoint(site.folder, "broken", resources="1 / 0\n")
    for name, text in (("refusing", REFUSING), ("late", LATE)):
        endpoint = leaks.write_endpoint(site.folder, name, blueprint=text)
        keys = secret_keys(name) | {"CLIENTS": None, "BLUEPRINTS": [endpoint]}
        site.write(name, tenant_text(name, **keys))
    (site.folder / "instance/secrets/ACME_KEY").write_text(f"{MARK}-acme-{TAIL}")
    (site.folder / "instance/secrets/ACME_KEY").chmod(0o600)
    oidc = {"issuer": issuer, "audience": "shop", "jwks_uri": f"{issuer}/keys?code={MARK}"}
    keys = secret_keys("acme") | {
        "DATABASE_URI": database,
        "OIDC": oidc,
        "BLUEPRINTS": ["images", shop],
    }
    text = tenant_text("acme", **keys | {"SECRET_KEY": None})
    reads = "from tenantry import secret\nSECRET_KEY = secret('ACME_KEY')\n"
    site.write("acme", f"{reads}WORD = 'is ' + secret('ACME_WORD')\n{text}")
    good = secret_keys("globex") | {"CLIENTS": None, "BLUEPRINTS": ["images", shop]}
    site.write("globex", tenant_text("globex", **good))
    down = f"postgresql+psycopg://acme:{MARK}-database@127.0.0.1:9/acme"
    late = {"DATABASE_URI": down, "BLUEPRINTS": ["images", shop]}
    site.write("down", tenant_text("down", **secret_keys("down") | late))
    site.write("broken", tenant_text("broken", **secret_keys("broken"), BLUEPRINTS=[broken]))
    for number, lines in enumerate(rejected()):
        site.write(f"bad{number}", f"BLUEPRINTS = ['landing']\n{lines}\n")


def rejected() -> Iterator[str]:
    """Yield the lines of tenant files that are rejected for a problem next to a secret."""
    key, short = f"{MARK}-{TAIL}", f"{MARK}"
    yield f"SECRET_KEY = '{short}'"
    yield f"SECRET_KEY = ['{key}']"
    yield f"SECRET_KEY = '{key}\n"
    yield f"SECRET_KEY = '{key}'\nraise ValueError('no ' + SECRET_KEY)"
    yield f"SECRET_KEY = '{key}'\nint('{key}')"
    yield f"SECRET_KEY = '{key}'\nAPI_TOKEN = 'api-{MARK}-{short}'\nint(API_TOKEN)"
    yield f"raise ValueError('no redis://:{short}@h, no http://h/?page=1&token={short}')"
    yield f"SECRET_KEY = '{key}'\nraise SystemExit(SECRET_KEY)"
    yield f"SECRET_KEYS = '{key}'"
    yield f"SECRET_KEY = '{key}'\nSECRET_KEY_FALLBACKS = '{key}'"
    yield f"SECRET_KEY = '{key}'\nDATABASE_URI = 'nosql://a:{key}@h/d'"
    yield f"SECRET_KEY = '{key}'\nDATABASE_URI = 'postgresql://a:{key}@@h:x/d'"
    yield f"SECRET_KEY = '{key}'\nDATABASE_URI = 'sqlite:///x?password={key}'\nENABLED = 7"
    yield f"SECRET_KEY = '{key}'\nCLIENTS = {{'web': '{key}'}}"
    yield f"SECRET_KEY = '{key}'\nOIDC = {{'issuer': 'http://a:{key}@h', 'audience': 'a'}}"
    yield f"SECRET_KEY = '{key}'\nMAIL_PASSWORDS = object()\nTRUSTED_HOSTS = ['a b']"
    yield "from tenantry import secret\nSECRET_KEY = URL_PREFIX = APP_NAME = secret('ACME_KEY')"
    yield "from tenantry import secret\nSECRET_KEY = secret('ACME_KEY')\nBLUEPRINTS = [SECRET_KEY]"
    yield "from tenantry import secret\nSECRET_KEY = secret('ACME_KEY')\nRATE_LIMIT = SECRET_KEY"
    yield "from tenantry import secret\nSECRET_KEY = secret('ACME_KEY')\nMAINTENANCE = [SECRET_KEY]"
    yield "from tenantry import secret\nSECRET_KEY = secret('ACME_KEY')\nACME_K = {SECRET_KEY: {}}"
    yield f"SECRET_KEY = 'globex'\nimport sys\nsys.stderr.write('{key}')\nprint('{key}')"


COMMANDS = (
    "check", "check acme globex", "list", "list --json", "show acme", "show acme --json",
    "show down", "show bad3", "routes acme", "routes broken", "plan", "plan --json",
    "plan --save saved.json", "plan --against saved.json", "audit", "audit --json",
    "db status --all", "db upgrade --all", "db status --all --json", "backup acme acme.capsule",
    "backup globex globex.capsule", "backup down down.capsule", "get /globex/images/",
    *(f"get /globex/{one}" for one in PATHS[:-1]), "routes refusing", "routes late",
    "get /down/images/", "get /acme/shop/",
    f"get /acme/fail --header X-API-Key:{CLIENT_KEY}", "run acme -- routes",
    "run bad3 -- routes", "key acme mobile", "maintenance on globex --message later",
    "maintenance off globex", "disable down", "enable down", "clone globex copy",
    "clone acme copy2", "restore globex.capsule --as again", "restore acme.capsule --as acme2",
    "new fresh", "restart", "serve --bind nowhere:x",
)  # fmt: skip

OF_A_HOST = "list --wait", "list --json", "plan", "maintenance on globex", "disable down", "restart"


def send_to_server(site: Site, server: Server, token: str) -> None:
    """Send requests and commands, both successful and failing, to a server."""
    bearer = {"Authorization": f"Bearer {token}"}
    headers = [{}, {"X-API-Key": CLIENT_KEY}, {"X-API-Key": f"{CLIENT_KEY}-ended"}, bearer]
    headers += [{"X-API-Key": f"{MARK}-x"}, {"Authorization": f"Basic {MARK}"}, {"Cookie": MARK}]
    paths = "shop/", *PATHS, "images/", "none", f"?key={MARK}"
    for name in ("acme", "globex", "down", "broken", "refusing", "late", "bad3", "copy", "again"):
        for path in paths:
            for one in headers:
                with suppress(IncompleteRead):
                    answer, body = server.get(f"/{name}/{path}", one)
                    site.keep(f"{name}/{path}", f"{answer.headers}".encode() + body)
    for path in ("/-/readyz", "/-/admin/", "/-/metrics"):
        admin = int(site.environ["TENANTRY_ADMIN_BIND"].rpartition(":")[2])
        site.keep(path, server.get(path, port=admin)[1])
    for data in (
        f"GET /acme/\x00 HTTP/1.1\r\nX-API-Key: {MARK}\r\n\r\n",
        f"GET /acme/ HTTP/1.1\r\nHost: {MARK}/\r\nX-API-Key : {MARK}\r\n\r\n",
    ):
        site.keep("raw", server.send(data.encode()))
    for question in ("list", f"plan {TAIL}", "ready", "awake", "accepted", MARK):
        site.keep(question[:4], json.dumps(ask_workers(site.data, question)).encode())
    for pid in group(server.process.pid):
        with suppress(OSError):
            site.keep("processes", Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.fixture(name="site")
def _site(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    """Return a folder with tenants. Restore logging and imports after the test."""
    root = logging.getLogger()
    before = list(root.handlers), root.level
    monkeypatch.syspath_prepend(tmp_path)
    yield Site(tmp_path, capfd)
    root.handlers[:], level = before
    root.setLevel(level)
    for name in [name for name in sys.modules if name.partition(".")[0] == "corp"]:
        del sys.modules[name]


@pytest.fixture(name="issuer")
def _issuer(site: Site, postgres_url: str) -> Iterator[Issuer]:
    """Write the tenant files, and run the OpenID Connect issuer that one tenant uses."""
    url = postgres_url.replace("postgres@", f"postgres:{MARK}-database@")
    with running_issuer() as issuer:
        files(site, url, issuer.url)
        yield issuer


@pytest.mark.live
def test_no_command_shows_a_secret(site: Site, issuer: Issuer) -> None:
    """No `tenantry` command prints or writes a secret, even if it fails at log level `debug`."""
    del issuer
    for words in COMMANDS:
        site.run(*words.split())
    site.run("list", TENANTRY_ADMIN_TOKEN=MARK)
    site.run("list", TENANTRY_RATE_LIMIT_STORAGE=f"reddis://:{MARK}@h")

    assert {} == site.leaks()
    assert {"acme.capsule", "globex.capsule", "saved.json"} <= site.produced.keys()


@pytest.mark.live
@pytest.mark.parametrize("form", ["console", "json"])
def test_no_server_shows_a_secret(site: Site, issuer: Issuer, form: str) -> None:
    """A server's log, files and responses contain no secrets."""
    token = issuer.token(sub="ada", secret=MARK)
    command = ["tenantry", "serve", "--bind", "{bind}", "--workers", "1"]
    with running(command, site.folder, **site.environ, TENANTRY_LOG_FORMAT=form) as server:
        send_to_server(site, server, token)
        for words in OF_A_HOST:
            site.run(*words.split())

    assert {} == site.leaks()
    assert [] == [where for where, what in site.produced.items() if token[-20:].encode() in what]
