"""Tenant files that are broken in every way seen so far do not affect other tenants.

`tenantry check` reports each broken file. A server starts despite the broken files, and clients of
a broken tenant get a 503 without the reason.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import KEY, tenant_text
from servers import DEADLINE_S, Server, wait_until
from tenantry.tenants.file import printable

pytestmark = pytest.mark.live

PASSWORD = "hunter2-hunter2"


@dataclass(frozen=True)
class Broken:
    """One kind of broken tenant file, and what `tenantry check` reports about it."""

    message: str
    """Text that `tenantry check` must print about the file."""
    write: Callable[[Path], object]
    """Function that creates the broken file at a path."""
    has_prefix: bool = True
    """Whether `/<name>` belongs to the tenant.

    This is false for a tenant that has an invalid name or prefix.
    """


def _text(message: str, text: str) -> Broken:
    return Broken(message, lambda path: path.write_text(text, encoding="utf-8"))


def _bytes(message: str, content: bytes) -> Broken:
    return Broken(message, lambda path: path.write_bytes(content))


def _keys(message: str, *, has_prefix: bool = True, **keys: object) -> Broken:
    """Return a valid tenant file with the given keys replaced.

    If a value is None, the key is removed.
    """
    return Broken(message, lambda path: path.write_text(tenant_text(path.stem, **keys)), has_prefix)


def _runs(message: str, *lines: str) -> Broken:
    """Return a valid tenant file that runs the given lines first."""
    good = f'SECRET_KEY = "{KEY}"\nBLUEPRINTS = ["landing"]\n'
    return _text(message, "\n".join(lines) + "\n" + good)


def _misnamed() -> Broken:
    return _keys("a tenant's name has 1 to 63 characters", has_prefix=False)


def _links_to(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def _linked_outside(path: Path) -> None:
    outside = path.parent.parent / "outside.py"
    outside.write_text(tenant_text("outside"))
    path.symlink_to(outside)


def _writable_by_all(path: Path) -> None:
    path.write_text(tenant_text("writable"))
    path.chmod(0o666)


def _linked_database(path: Path) -> None:
    (path.parent.parent / "link.sqlite3").symlink_to("globex.sqlite3")
    path.write_text(tenant_text("linked", DATABASE_URI="sqlite:///link.sqlite3"))


_PREFIX_RULE = "'URL_PREFIX': found"

BROKEN: dict[str, Broken] = {
    # files that are not Python, or do not run to the end
    "syntax": _text(":1: syntax error: '(' was never closed", "SECRET_KEY = (\n"),
    "indent": _text(":2: syntax error: unexpected indent", "A = 1\n  B = 2\n"),
    "raises": _text(":2: ZeroDivisionError: division by zero", "A = 1\nB = A / 0\n"),
    "imports-nothing": _text(
        ":1: ModuleNotFoundError: No module named 'nowhere'", "import nowhere"
    ),
    "no-secret": _text(
        ":2: no secret 'NO_SUCH_KEY'. Looked at: environment variable NO_SUCH_KEY",
        "from tenantry import secret\nSECRET_KEY = secret('NO_SUCH_KEY')\n",
    ),
    "secret-in-error": _text(
        ":2: ValueError: …", f'SECRET_KEY = "{KEY}"\nraise ValueError(SECRET_KEY)'
    ),
    "exit-0": _runs(":1: ends its process (SystemExit 0)", "raise SystemExit(0)"),
    "exit-3": _runs(":1: ends its process (SystemExit 3)", "raise SystemExit(3)"),
    "exit-at-once": _runs("ends its process (exit code 0)", "import os", "os._exit(0)"),
    "endless": _runs("did not finish in 5 s", "while True: pass"),
    "segfault": _runs("ends its process (SIGSEGV)", "import ctypes", "ctypes.string_at(0)"),
    "recursion": _runs(":1: RecursionError", "def f(): f()", "f()"),
    "memory": _runs(":1: needs more than 512 MiB", "A = 'x' * (4 << 30)"),
    "kills-loader": _runs(
        "killed or stopped the loader process", "import os", "os.kill(os.getppid(), 9)"
    ),
    "forks": _runs("overwrote its answer", "import os", "os.fork()"),
    "answers-itself": _runs(
        "overwrote its answer",
        "import os",
        "for fd in range(3, 20):",
        '    try: os.write(fd, b\'{"values": {"A": ["list", 1]}, "refused": {}, "effects": []}\')',
        "    except OSError: pass",
        "os._exit(0)",
    ),
    # files that cannot be read
    "empty": _text("'SECRET_KEY': is missing", ""),
    "large": _bytes("is larger than 1 MiB (2,097,152 bytes)", b"#" * (2 << 20)),
    "nul": _bytes("syntax error: source code", b"A = 1\0\n"),
    "latin-1": _bytes("save the file as UTF-8", "APP_NAME = 'café'\n".encode("latin-1")),
    "folder": Broken("is not a regular file", Path.mkdir),
    "fifo": Broken("is not a regular file", os.mkfifo),
    "dangling": Broken("is a link that cannot be followed", _links_to("nowhere.py")),
    "loop": Broken("is a link that cannot be followed", _links_to("loop.py")),
    "linked-outside": Broken("links to a file outside the tenants folder", _linked_outside),
    "writable": Broken("every user can write to it; run: chmod o-w tenants/", _writable_by_all),
    "Upper": _misnamed(),
    "9lives": _misnamed(),
    "two.dots": _misnamed(),
    "n" * 64: _misnamed(),
    "secrets": _keys("no tenant can be named 'secrets'", has_prefix=False),
    "new\nline": _misnamed(),
    "\udcff": _misnamed(),  # not UTF-8: byte 0xff
    # files that change the process in which they run
    "chdir": _runs("changes the working directory", "import os", "os.chdir('/')"),
    "environ": _runs("changes os.environ['PATH']", "import os", "os.environ['PATH'] = ''"),
    "search-path": _runs("changes sys.path", "import sys", "sys.path.append('/')"),
    "umask": _runs("changes the umask", "import os", "os.umask(0o123)"),
    "signals": _runs(
        "changes the handler of SIGUSR1", "import signal", "signal.signal(signal.SIGUSR1, print)"
    ),
    "timer": _runs("starts a timer", "import signal", "signal.alarm(60)"),
    "logging": _runs("changes logging.disable", "import logging", "logging.disable()"),
    "log-handler": _runs("changes the log handlers", "import logging", "logging.basicConfig()"),
    "thread": _runs(
        "starts a thread",
        "import threading, time",
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    ),
    "child": _runs(
        "starts a child process",
        "import subprocess",
        "child = subprocess.Popen(['sleep', '60'])",
    ),
    "socket-timeout": _runs(
        "changes the socket default timeout", "import socket", "socket.setdefaulttimeout(1)"
    ),
    "locale": _runs(
        "changes the locale", "import locale", "locale.setlocale(locale.LC_NUMERIC, 'C.UTF-8')"
    ),
    "filters": _runs(
        "changes the warnings filters", "import warnings", "warnings.simplefilter('ignore')"
    ),
    "recursion-limit": _runs(
        "changes the recursion limit", "import sys", "sys.setrecursionlimit(9000)"
    ),
    # values
    "function": _runs("'HOOK': found function; write plain data", "def HOOK(): pass"),
    "holds-itself": _runs(
        "'LOOP': found data that is nested too deeply", "LOOP = []", "LOOP.append(LOOP)"
    ),
    "huge-number": _runs(
        "'MAX_CONCURRENT_REQUESTS': found an int", "MAX_CONCURRENT_REQUESTS = -(10 ** 5000)"
    ),
    "secret-missing": _keys("'SECRET_KEY': is missing; write", SECRET_KEY=None),
    "secret-empty": _keys("'SECRET_KEY': has 0 characters", SECRET_KEY=""),
    "secret-int": _keys("'SECRET_KEY': found int; expected a string", SECRET_KEY=7),
    "secret-bytes": _keys("'SECRET_KEY': found bytes", SECRET_KEY=KEY.encode()),
    "secret-short": _keys("'SECRET_KEY': has 15 characters", SECRET_KEY=PASSWORD),
    "secret-known": _keys("'SECRET_KEY': is a well-known secret", SECRET_KEY="Secret!"),
    "secret-misspelt": _keys("did you mean 'SECRET_KEY'?", SECRETKEY=PASSWORD),
    "misspelt": _keys(
        "'BLUEPRINT': unknown key; did you mean 'BLUEPRINTS'?", BLUEPRINT=["landing"]
    ),
    "debug": _keys("'DEBUG': shows the code and its secrets", DEBUG=True),
    "testing": _keys("'TESTING': shows the code and its secrets", TESTING=True),
    "client-keys": _keys("'CLIENTS['a']': is not the hash of a key", CLIENTS={"a": PASSWORD}),
    "client-limits": _keys(
        "'CLIENTS['a']['endpoints'][0]': 'images' is not in 'BLUEPRINTS'",
        CLIENTS={"a": {"key": f"sha256:{'0' * 64}", "endpoints": ["images"]}},
    ),
    "issuer-http": _keys(
        "'OIDC['issuer']': expected an https URL",
        OIDC={"issuer": f"http://acme:{PASSWORD}@login.test", "audience": "acme"},
    ),
    "uri-unparsable": _keys("'DATABASE_URI': cannot be parsed", DATABASE_URI=PASSWORD),
    "uri-at-sign": _keys(
        "'DATABASE_URI': cannot be parsed",
        DATABASE_URI=f"postgresql://acme:p@ss:{PASSWORD}@host/acme",
    ),
    "uri-nul": _keys("'DATABASE_URI': cannot be parsed", DATABASE_URI="sqlite:///a\0b"),
    "uri-dialect": _keys(
        "'DATABASE_URI': names an unknown dialect 'postgres'",
        DATABASE_URI=f"postgres://acme:{PASSWORD}@host/acme",
    ),
    "uri-driver": _keys(
        "'DATABASE_URI': needs the driver 'pymssql'",
        DATABASE_URI=f"mssql+pymssql://acme:{PASSWORD}@host/acme",
    ),
    "rate-wrong": _keys(
        "'RATE_LIMIT': found '1/fortnight'; expected a rate", RATE_LIMIT="1/fortnight"
    ),
    "host-port": _keys(
        "'TRUSTED_HOSTS[0]': found 'a.org:80'; expected a host name without a port",
        TRUSTED_HOSTS=["a.org:80"],
    ),
    "blueprints-str": _keys(
        "'BLUEPRINTS': found str 'landing'; expected a list", BLUEPRINTS="landing"
    ),
    "blueprints-none": _text(
        "'BLUEPRINTS': found None; expected a list", f"SECRET_KEY = {KEY!r}\nBLUEPRINTS = None\n"
    ),
    "blueprints-dict": _keys("'BLUEPRINTS': found dict", BLUEPRINTS={"landing": 1}),
    "blueprints-nested": _keys("'BLUEPRINTS[0]': found list", BLUEPRINTS=[["landing"]]),
    "blueprints-empty": _keys("'BLUEPRINTS': found []", BLUEPRINTS=[]),
    "blueprints-twice": _keys(
        "'landing' is listed more than once", BLUEPRINTS=["landing", "landing"]
    ),
    "blueprints-many": _keys(
        "expected at most 100 endpoints, not 10,000",
        BLUEPRINTS=[f"e{number}" for number in range(10_000)],
    ),
    "endpoint-unknown": _keys(
        "'BLUEPRINTS[1]': no endpoint named 'landin'; did you mean 'landing'?",
        BLUEPRINTS=["landing", "landin"],
    ),
    "endpoint-no-blueprint": _keys("has no Blueprint 'bare_bp'", BLUEPRINTS=["extra.bare"]),
    "endpoint-imports": _keys("fails to import: KeyError", BLUEPRINTS=["extra.importing"]),
    "endpoint-exits": _keys("fails to import: SystemExit", BLUEPRINTS=["extra.exiting"]),
    "endpoint-ends": _keys(
        "endpoint 'extra.ending' ends its process (exit code 0)", BLUEPRINTS=["extra.ending"]
    ),
    "endpoint-registers": _keys("fails to register: OSError", BLUEPRINTS=["extra.registering"]),
    # prefixes, and values of another tenant
    "prefix-reserved": _keys("/admin is reserved for proxies", URL_PREFIX="/admin/panel"),
    "prefix-static": _keys("/static is reserved for proxies", URL_PREFIX="/static"),
    "prefix-slash": _keys(_PREFIX_RULE, URL_PREFIX="/a/"),
    "prefix-root": _keys(_PREFIX_RULE, URL_PREFIX="/"),
    "prefix-empty": _keys(_PREFIX_RULE, URL_PREFIX=""),
    "prefix-dots": _keys(_PREFIX_RULE, URL_PREFIX="/a/../b"),
    "prefix-space": _keys(_PREFIX_RULE, URL_PREFIX="/a b"),
    "prefix-escape": _keys(_PREFIX_RULE, URL_PREFIX="/a%2fb"),
    "prefix-unicode": _keys(_PREFIX_RULE, URL_PREFIX="/café"),
    "prefix-upper": _keys(_PREFIX_RULE, URL_PREFIX="/ACME"),
    "prefix-long": _keys(_PREFIX_RULE, URL_PREFIX="/" + "a" * 300),
    "prefix-hyphen": _keys(_PREFIX_RULE, URL_PREFIX="/-a"),
    "same-prefix": _keys(
        "/acme is also the prefix of tenant 'acme'", URL_PREFIX="/acme", has_prefix=False
    ),
    "inner-prefix": _keys(
        "/acme/inner is inside /acme of tenant", URL_PREFIX="/acme/inner", has_prefix=False
    ),
    "outer-prefix": _keys(
        "/clients contains /clients/globex of", URL_PREFIX="/clients", has_prefix=False
    ),
    "same-secret": _keys(
        "'SECRET_KEY': is also 'SECRET_KEY' of tenant 'acme'", SECRET_KEY=f"acme-{KEY}"
    ),
    "same-fallback": _keys(
        "'SECRET_KEY_FALLBACKS[0]': is also 'SECRET_KEY' of tenant 'acme'",
        SECRET_KEY_FALLBACKS=[f"acme-{KEY}"],
    ),
    "same-database": _keys(
        "is also the database of tenant 'globex'",
        DATABASE_URI="sqlite:///./tenants/../globex.sqlite3?timeout=5",
    ),
    "linked-database": Broken("is also the database of tenant 'globex'", _linked_database),
}

ENDPOINTS = {
    "bare": "blueprint = None\n",
    "importing": "{}['key']\n",
    "exiting": "raise SystemExit(3)\n",
    "ending": "import os, threading\nif threading.active_count() < 2: os._exit(0)\n0 / 0\n",
    "registering": (
        "from flask import Blueprint\n"
        "registering_bp = Blueprint('registering', __name__)\n"
        "@registering_bp.record\n"
        "def fail(state):\n"
        "    raise OSError('the licence server is away')\n"
    ),
}

GOOD = {"acme": "/acme", "globex": "/clients/globex", "with-bom": "/with-bom", "crlf": "/crlf"}


def _write_corpus(folder: Path) -> None:
    """Write valid and broken tenant files, and the endpoints that these files name."""
    tenants = folder / "tenants"
    tenants.mkdir(exist_ok=True)
    (tenants / "acme.py").write_text(tenant_text("acme"))
    clients = {"URL_PREFIX": "/clients/globex", "DATABASE_URI": "sqlite:///globex.sqlite3"}
    (tenants / "globex.py").write_text(tenant_text("globex", **clients))
    (tenants / "with-bom.py").write_text(tenant_text("with-bom"), encoding="utf-8-sig")
    (tenants / "crlf.py").write_text(tenant_text("crlf"), newline="\r\n")
    for name, broken in BROKEN.items():
        broken.write(tenants / f"{name}.py")
    for name, text in ENDPOINTS.items():
        package = folder / "extra" / name
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "blueprint.py").write_text(text)
    (folder / "extra/__init__.py").touch()


@pytest.fixture(name="checking", scope="module", autouse=True)
def _checking(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Start `tenantry check`. Return the process and its output file.

    The command takes five seconds because of a timeout, so it runs during the first test.
    """
    folder = tmp_path_factory.mktemp("broken")
    _write_corpus(folder)
    environ = {key: value for key, value in os.environ.items() if not key.startswith("TENANTRY_")}
    output = folder / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("tenantry"), "check"],
            cwd=folder,
            env=environ,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    yield process, output
    process.kill()
    process.wait()


@pytest.fixture(name="report", scope="module")
def _report(checking: tuple[subprocess.Popen[bytes], Path]) -> list[str]:
    """Return the lines that `tenantry check` prints."""
    process, output = checking
    process.wait(DEADLINE_S)
    return output.read_text().splitlines()


def _file(name: str) -> str:
    return f"tenants/{printable(name)}.py:"


def test_a_server_starts_despite_every_broken_file(
    tmp_path: Path,
    tenants_dir: Path,  # noqa: ARG001 - sets a variable that the server reads
    start_server: Callable[..., Server],
) -> None:
    """Despite broken tenant files, a server answers 201 for valid tenants and 503 for the rest."""
    _write_corpus(tmp_path)
    paths = [f"/{name}/" for name, broken in BROKEN.items() if broken.has_prefix]
    refusal = (503, "application/problem+json", True, "This application is not available.")

    server = start_server(["tenantry", "serve", "--bind", "{bind}", "--workers", "1"])

    all_paths = [*paths, *(f"{prefix}/" for prefix in GOOD.values())]
    wait_until(lambda: not any(b"is starting." in server.get(path)[1] for path in all_paths))
    assert dict.fromkeys(GOOD.values(), 201) == {
        prefix: server.get(f"{prefix}/")[0].status for prefix in GOOD.values()
    }
    assert dict.fromkeys(paths, refusal) == {path: _refusal(server, path) for path in paths}
    log = server.log.read_text()
    assert [] == [name for name in BROKEN if f"rejected: {_file(name)}" not in log]
    assert (False, False) == (KEY in log, PASSWORD in log)


def _refusal(server: Server, path: str) -> tuple[int, str | None, bool, str]:
    """Return the status, type, presence of `Retry-After`, and detail of a client's response."""
    response, body = server.get(path)
    document = json.loads(body)
    members = {"type", "title", "status", "detail", "request_id"}
    assert members == document.keys()
    retry_after = response.getheader("Retry-After", "")
    media_type = response.getheader("Content-Type")
    return response.status, media_type, retry_after.isdigit(), document["detail"]


def test_check_reports_each_file_in_one_line(report: list[str]) -> None:
    """`tenantry check` reports each broken file in one line that names the file and the fault."""
    found = {
        name: sum(_file(name) in line and broken.message in line for line in report)
        for name, broken in BROKEN.items()
    }

    assert dict.fromkeys(BROKEN, 1) == found


def test_check_reports_nothing_else(report: list[str]) -> None:
    """`tenantry check` reports only broken files, and ends with the number of problems."""
    files = {line.partition(".py:")[0] for line in report[:-1]}

    assert {_file(name).removesuffix(".py:") for name in BROKEN} == files
    assert f"{len(BROKEN) + len(GOOD)} tenants, {len(BROKEN)} with problems." == report[-1]


def test_check_prints_no_secret(report: list[str]) -> None:
    """`tenantry check` prints no key and no password of a broken file."""
    assert [] == [line for line in report if KEY in line or PASSWORD in line]


def test_check_exits_with_1(
    checking: tuple[subprocess.Popen[bytes], Path], report: list[str]
) -> None:
    """`tenantry check` exits with 1 if any tenant file has a problem."""
    del report  # the command has ended when its output has been read

    assert 1 == checking[0].returncode
