"""The command line: what it prints, and its exit codes."""

import ast
import json
import logging
import os
import socket
import stat
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import tenantry.app.trial_build
from conftest import KEY
from postgres import Postgres
from servers import free_port
from tenantry.cli import COMMANDS, main
from tenantry.cli.serve import start_report
from tenantry.observability.redaction import MASK, redact_value
from tenantry.server.listeners import Listener, check_listeners
from tenantry.settings import HostSettings
from tenantry.tenants.clients import hash_client_key, parse_clients
from tenantry.tenants.lookup import scan


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


Tenantry = Callable[..., Result]


@pytest.fixture(name="tenantry")
def _tenantry(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Tenantry]:
    """Return a function that runs a command in process, in the folder above both folders."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before = list(root.handlers), root.level

    def run(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["tenantry", *words])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    yield run
    root.handlers[:], level = before
    root.setLevel(level)


@pytest.fixture(name="acme")
def _acme(write_tenant: Callable[..., Path], data_dir: Path) -> Path:
    """Write a good tenant `acme`."""
    del data_dir
    return write_tenant("acme", APP_NAME="Acme Ltd", MAIL_PASSWORD="hunter2")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(tenantry: Tenantry, command: str) -> None:
    """`--help` says what a command does, exit 0."""
    result = tenantry(command, "--help")

    assert (0, True) == (result.code, result.out.startswith(f"Usage: tenantry {command}"))


@pytest.mark.parametrize(
    "words",
    [
        ("frobnicate",),
        ("show",),
        ("show", "nobody"),
        ("routes", "nobody"),
        ("check", "nobody"),
        ("run", "nobody", "--", "routes"),
        ("get", "acme"),
        ("get", "/acme/", "--header", "no colon"),
        ("list", "--frob"),
        ("new", "Bad Name"),
        ("new", "shop", "--prefix", "/shop/"),
        ("new", "shop", "--prefix", "/admin"),
        ("new", "shop", "--endpoint", "landin"),
        ("new", "shop", "--endpoint", "landing", "--endpoint", "landing"),
        ("new", "admin"),
        ("new", "secrets"),
        ("get", "/acme/", "--header", "a b: c"),
        ("get", "/acme/", "--header", "Name: 日本"),
        ("serve", "--bind", "127.0.0.1:65536"),
        ("serve", "--bind", "127.0.0.1:0"),
        ("serve", "--bind", "127.0.0.1:8001"),
        ("serve", "--bind", "localhost:8001"),
        ("serve", "--bind", "0.0.0.0:8001"),
        ("serve", "--workers", "0"),
        ("serve", "--threads", "many"),
        ("serve", "--bind", "nowhere"),
    ],
)
@pytest.mark.usefixtures("acme")
def test_bad_arguments_are_one_line_and_exit_2(tenantry: Tenantry, words: tuple[str, ...]) -> None:
    """Misuse says in one line on stderr what is wrong, and prints nothing else."""
    result = tenantry(*words)

    assert (2, "", 1) == (result.code, result.out, len(result.err.splitlines()))


def test_a_bad_setting_is_one_line_and_exit_2(
    tenantry: Tenantry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown `TENANTRY_` variable names the one that was meant."""
    monkeypatch.setenv("TENANTRY_TENANT_DIR", "x")

    result = tenantry("list")

    assert 2 == result.code
    assert "did you mean TENANTRY_TENANTS_DIR?" in result.err


def test_a_missing_folder_is_one_line_and_exit_1(tenantry: Tenantry, tenants_dir: Path) -> None:
    """Without a tenants folder a command says so and names the setting."""
    tenants_dir.rmdir()

    result = tenantry("check")

    assert (1, 1) == (result.code, len(result.err.splitlines()))
    assert "TENANTRY_TENANTS_DIR" in result.err


@pytest.mark.live
@pytest.mark.usefixtures("acme")
def test_check_is_content_with_good_tenants(tenantry: Tenantry) -> None:
    """`check` says how many there are, exit 0."""
    assert Result(0, "1 tenant, 0 with problems.\n", "") == tenantry("check")


@pytest.mark.usefixtures("acme")
def test_check_names_every_problem(tenantry: Tenantry, write_tenant: Callable[..., Path]) -> None:
    """`check` prints a line per problem of each tenant that was asked for, exit 1."""
    write_tenant("globex", SECRET_KEY=None, BLUEPRINTS=["landin"])

    result = tenantry("check", "globex")

    assert (1, ["'SECRET_KEY'", "'BLUEPRINTS[0]'"]) == (
        result.code,
        [line.split()[1].rstrip(":") for line in result.out.splitlines()],
    )
    assert result.out.startswith("tenants/globex.py: ")


DATABASES = {
    "no database": ("{server}", 'FATAL: database "nowhere" does not exist'),
    "no server": ("postgresql+psycopg://a:opensesame@127.0.0.1:{free}/a", "Connection refused"),
    "no folder": ("sqlite:///{folder}/nowhere/a.db", "there is no folder {folder}/nowhere for"),
    "no such file": ("sqlite:///{folder}/tenants/acme.py", "file is not a database"),
}


@pytest.fixture(name="words")
def _words(postgres_server: Postgres, tmp_path: Path) -> dict[str, str]:
    """Return what the URLs of `DATABASES` are made of."""
    server = postgres_server.url("nowhere").replace("postgres@", "postgres:opensesame@")
    return {"server": server, "free": str(free_port()), "folder": str(tmp_path)}


@pytest.mark.live
@pytest.mark.parametrize("case", DATABASES)
def test_check_connects_to_databases(
    tenantry: Tenantry, write_tenant: Callable[..., Path], words: dict[str, str], case: str
) -> None:
    """A database that takes no connection is a line with the reason, without its password."""
    url, reason = (word.format(**words) for word in DATABASES[case])
    write_tenant("acme", DATABASE_URI=url)

    result = tenantry("check")

    assert (1, True) == (
        result.code,
        result.out.startswith("tenants/acme.py: 'DATABASE_URI': cannot be used: "),
    ), result
    assert reason in result.out
    assert "opensesame" not in result.out


@pytest.mark.live
def test_check_asks_which_database_it_is(
    tenantry: Tenantry, write_tenant: Callable[..., Path], postgres_url: str
) -> None:
    """Two names of one server are one database, which the URLs alone do not tell."""
    write_tenant("acme", DATABASE_URI=postgres_url)
    write_tenant("globex", DATABASE_URI=postgres_url.replace("127.0.0.1", "127.1"))

    result = tenantry("check")

    assert (
        "tenants/globex.py: 'DATABASE_URI': is the database of tenant 'acme', by another name of "
        "its server; give each its own: rows of one are the other's.\n"
    ) == result.out
    assert 1 == result.code


@pytest.mark.live
def test_check_builds(
    tenantry: Tenantry, write_tenant: Callable[..., Path], tmp_path: Path
) -> None:
    """An endpoint that exists and fails to import is found by `check`, with its line."""
    package = tmp_path / "broken_endpoint"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "blueprint.py").write_text("import nothing_of_this_name\n")
    write_tenant("acme", BLUEPRINTS=["broken_endpoint.sub"], text=None)
    (package / "sub").mkdir()
    (package / "sub/__init__.py").write_text("")
    (package / "sub/blueprint.py").write_text("import nothing_of_this_name\n")

    result = tenantry("check", "--json")

    (problem,) = json.loads(result.out)["problems"]
    assert ("acme", "BLUEPRINTS[0]") == (problem["tenant"], problem["key"])
    assert "nothing_of_this_name" in problem["message"]
    sys.modules.pop("broken_endpoint", None)
    sys.modules.pop("broken_endpoint.sub", None)


def test_list_shows_every_tenant(tenantry: Tenantry, write_tenant: Callable[..., Path]) -> None:
    """`list` has a tab-separated line per tenant in a pipe, whatever its state."""
    write_tenant("acme")
    write_tenant("broken", text="SECRET_KEY = ")
    write_tenant("closed", MAINTENANCE=True, URL_PREFIX="/c/d")
    write_tenant("off", ENABLED=False)

    result = tenantry("list")

    assert [
        "acme\t/acme\tidle\tlanding\t",
        "broken\t/broken\tfailed\t\ttenants/broken.py:1: syntax error: invalid syntax; fix it.",
        "closed\t/c/d\tmaintenance\tlanding\t",
        "off\t/off\tdisabled\tlanding\t",
    ] == result.out.splitlines()


@pytest.mark.live
def test_operator_state_that_cannot_be_read_is_a_problem_of_one_tenant(
    tenantry: Tenantry, write_tenant: Callable[..., Path], data_dir: Path, tmp_path: Path
) -> None:
    """`list` and `plan` name it, as disabled: a host that starts does not serve it."""
    for name in ("acme", "globex"):
        write_tenant(name)
    (data_dir / "acme").mkdir(parents=True, exist_ok=True)
    (data_dir / "acme/operator_state.json").write_text("{")
    snapshot = tmp_path / "snapshot.json"
    snapshot.write_text('{"salt": "s", "tenants": {}}')

    listed = tenantry("list")
    plan = tenantry("plan", "--against", str(snapshot))

    path = data_dir / "acme/operator_state.json"
    problem = (
        f"tenant 'acme' is disabled: {path}: cannot be read (JSONDecodeError); "
        "remove it, and pull again."
    )
    rows = [f"acme\t/acme\tdisabled\tlanding\t{problem}", "globex\t/globex\tidle\tlanding\t"]
    assert (0, rows) == (listed.code, listed.out.splitlines())
    new = "+ globex: new at /globex, endpoints landing"
    assert (1, [new, f"! {problem}"]) == (plan.code, plan.out.splitlines())


@pytest.mark.usefixtures("acme")
def test_list_prints_json(tenantry: Tenantry) -> None:
    """`list --json` has an object per tenant."""
    row = {"name": "acme", "prefix": "/acme", "state": "idle", "endpoints": ["landing"]}
    row |= {"reason": ""}

    assert [row] == json.loads(tenantry("list", "--json").out)


PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"


@pytest.mark.usefixtures("acme")
def test_show_masks_secrets(tenantry: Tenantry) -> None:
    """`show` has every key with the value that counts, and no secret."""
    shown = json.loads(tenantry("show", "acme", "--json").out)

    assert ("Acme Ltd", "/acme", 30.0) == (
        shown["APP_NAME"],
        shown["URL_PREFIX"],
        shown["DEADLINE_S"],
    )
    assert [MASK, MASK] == [shown["SECRET_KEY"], shown["MAIL_PASSWORD"]]
    assert KEY not in json.dumps(shown)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("API_TOKEN", "x", MASK),
        ("SENTRY_DSN", "x", MASK),
        ("AWS_ACCESS_KEY", "x", MASK),
        ("TOKEN", "", ""),
        ("AWSKEY", "x", MASK),
        ("apiKeys", ["x"], MASK),
        ("BASICAUTH", ("a", "x"), MASK),
        ("LDAP_BINDPWD", b"x", MASK),
        ("LDAP_PASS", "x", MASK),
        ("PIN", 1234, MASK),
        ("KEYBOARD", "qwerty", "qwerty"),
        ("KEYWORDS", ["a"], ["a"]),
        ("MONKEY", "x", "x"),
        ("AUTHOR", "Ada", "Ada"),
        ("BASIC_AUTH_FORCE", True, True),
        ("AUTHORIZATION", "Basic x", MASK),
        ("CACHE_KEY_PREFIX", "acme", "acme"),
        ("BACKEND", b"redis://:pw@host/0", f"redis://:{MASK}@host/0"),
        ("HOOK", "https://h/?api_key=x&page=2", f"https://h/?api_key={MASK}&page=2"),
        ("HOOK", "https://u:p@ss@h/", f"https://u:{MASK}@h/"),
        ("BACKEND", "redis://u:Hunter2/slash@h/0", f"redis://u:{MASK}@h/0"),
        ("BACKENDS", "redis://u:a/b@h or 'redis://h' @", f"redis://u:{MASK}@h or 'redis://h' @"),
        ("PAGE", "http://h:80/a?b=1 a@b", "http://h:80/a?b=1 a@b"),
        ("SIGNER", f"{PEM}\n", f"{MASK}\n"),
        ("SIGNER", f"a {PEM[:-9]}", f"a {MASK}"),
        ("TRUSTED", "-----BEGIN CERTIFICATE-----\nMII", "-----BEGIN CERTIFICATE-----\nMII"),
        ("SENT", ["X: 1", "Bearer ab.c-d_e+f/="], ["X: 1", f"Bearer {MASK}"]),
        ("JWKS_URI", "https://h/keys?code=x&v=1", f"https://h/keys?code={MASK}&v=1"),
        ("COUNTRY", "code=de", "code=de"),
        ("LIBPQ", "host=h password=x dbname=d", f"host=h password={MASK} dbname=d"),
        ("CACHE_URL", "redis://:pw@host/0", f"redis://:{MASK}@host/0"),
        ("MAIL", {"host": "h", "password": "pw"}, {"host": "h", "password": MASK}),
        ("URLS", ["http://u:pw@h/"], [f"http://u:{MASK}@h/"]),
    ],
)
def test_what_is_masked(key: str, value: object, shown: object) -> None:
    """A value is masked where its key's name says that it is secret, a URL in its password."""
    assert shown == redact_value(key, value)


def test_what_holds_no_secret_is_itself() -> None:
    """An endpoint may put objects of its own into its app's configuration."""
    point = namedtuple("Point", "x y")(1, [2])  # noqa: PYI024 - as people write it

    class Stubborn:
        def __str__(self) -> str:
            raise RuntimeError

    for value in (point, {"a": [point]}, Stubborn()):
        assert value is redact_value("PLACE", value, ["secret"])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a/b cd", MASK),
        ("see a/b cd.", f"see {MASK}."),
        ("https://h/a%2Fb%20cd", f"https://h/{MASK}"),
        (b"\xffa/b cd", f"\ufffd{MASK}"),
        ({"a/b cd": {("a/b cd", 1)}}, {MASK: {(MASK, 1)}}),
        (Path("/srv/a/b cd"), f"/srv/{MASK}"),
        (1234, MASK),
        (12345, 12345),
        ("xyz", MASK),
        ("wxyz", "wxyz"),
    ],
)
def test_a_known_secret_is_masked_wherever_it_stands(value: object, shown: object) -> None:
    """Inside other text, in bytes, as a key, escaped in a URL; a short one only by itself."""
    assert shown == redact_value("NAME", value, ["a/b cd", "1234", "xyz"])


def test_show_tells_who_gets_in_without_keys(
    tenantry: Tenantry, write_tenant: Callable[..., Path]
) -> None:
    """Names, limits and the issuer are shown; a hash is masked: its key may be a guessable one."""
    entry = {"key": hash_client_key("guessable"), "methods": ["GET"], "expires": "2027-01-31"}
    oidc = {"issuer": "https://login.test", "audience": "acme"}
    write_tenant("acme", CLIENTS={"web": hash_client_key("password"), "app": entry}, OIDC=oidc)

    shown = json.loads(tenantry("show", "acme", "--json").out)

    app = {"key": MASK, "methods": ["GET"], "expires": "2027-01-31T23:59:59.999999+00:00"}
    assert {"web": {"key": MASK}, "app": app} == shown["CLIENTS"]
    assert oidc | {"audience": ["acme"]} == shown["OIDC"]


@pytest.mark.live
def test_plan_tells_that_a_client_key_changed(
    tenantry: Tenantry, write_tenant: Callable[..., Path], tmp_path: Path
) -> None:
    """By a fingerprint in the place of the key."""
    lines = []
    for key in ("one", "two"):
        write_tenant("acme", CLIENTS={"web": hash_client_key(key)})
        saved = str(tmp_path / "before.json")
        words = ("--save", saved) if key == "one" else ("--against", saved)
        lines.append(tenantry("plan", *words).out)

    assert "~ acme: CLIENTS: {'web': {'key': '********'}} (#" in lines[1]
    assert hash_client_key("two")[7:20] not in lines[1]


def test_key_prints_a_key_once_and_its_line(tenantry: Tenantry, acme: Path) -> None:
    """The line, pasted into CLIENTS, lets that key in; the file is not touched."""
    before = acme.read_text()
    result = tenantry("key", "acme", "mobile")
    _, key, _, where, line = result.out.splitlines()

    assert (0, f'    "mobile": "{hash_client_key(key)}",') == (result.code, line)
    assert ("tenants/acme.py" in where, before) == (True, acme.read_text())
    clients = parse_clients(ast.literal_eval(f"{{{line.strip()}}}"), "acme", None)
    assert clients is not None
    assert ["mobile"] == [client.name for client in clients.all]


def test_key_prints_json(tenantry: Tenantry, acme: Path) -> None:
    """For a script that hands the key on."""
    del acme
    made = json.loads(tenantry("key", "acme", "mobile", "--json").out)

    assert (f'"mobile": "{hash_client_key(made["key"])}",', "mobile") == (
        made["line"],
        made["client"],
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("globex", "mobile"), "tenantry: no tenant named 'globex'; tenants: acme."),
        (("acme", "a b"), "'a b': expected at most 64 letters, digits"),
        (("acme",), "Missing argument 'CLIENT'"),
    ],
)
def test_key_refuses_an_unknown_tenant_and_a_bad_name(
    tenantry: Tenantry, acme: Path, words: tuple[str, ...], text: str
) -> None:
    """Exit 2, and no key."""
    del acme
    result = tenantry("key", *words)

    assert (2, "", True) == (result.code, result.out, text in result.err)


def test_show_masks_what_secret_returned(
    tenantry: Tenantry, write_tenant: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret under a name that says nothing is not shown either."""
    monkeypatch.setenv("ACME_OTHER", "hunter2-hunter2")
    text = "from tenantry import secret\nLOOKS_HARMLESS = [b'x' + secret('ACME_OTHER').encode()]\n"
    path = write_tenant("acme")
    path.write_text(text + path.read_text())

    result = tenantry("show", "acme", "--json")

    assert (0, [f"x{MASK}"]) == (result.code, json.loads(result.out)["LOOKS_HARMLESS"])


def test_show_masks_the_password_of_a_database(
    tenantry: Tenantry, write_tenant: Callable[..., Path]
) -> None:
    """The database's URL is shown without its password."""
    write_tenant("acme", DATABASE_URI="sqlite://user:hunter2@/x.db")

    assert "hunter2" not in tenantry("show", "acme").out


def test_show_of_a_rejected_tenant_is_its_problems(
    tenantry: Tenantry, write_tenant: Callable[..., Path]
) -> None:
    """A command about one tenant says on stderr why that tenant is rejected, exit 1."""
    write_tenant("acme", SECRET_KEY="short", BLUEPRINTS=[])

    result = tenantry("show", "acme")

    assert (1, "", 2) == (result.code, result.out, len(result.err.splitlines()))


@pytest.mark.usefixtures("acme")
def test_routes_shows_rules_under_the_prefix(tenantry: Tenantry) -> None:
    """`routes` has rule, methods and endpoint."""
    assert "/acme/\tGET,HEAD,OPTIONS\tlanding.landingpage\n" == tenantry("routes", "acme").out


@pytest.mark.usefixtures("acme")
def test_get_prints_status_headers_and_body(tenantry: Tenantry) -> None:
    """`get` sends one request through the real stack."""
    head, _, body = tenantry("get", "/acme/?name=Ada").out.partition("\n\n")

    assert ("HTTP/1.1 201 CREATED", "Ada") == (head.splitlines()[0], json.loads(body)["hello"])


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("/acme/nothing",), 404),
        (("/nobody/",), 404),
        (("/acme/", "--method", "delete"), 405),
        (("/acme/", "--data", "x"), 405),
        (("/acme/", "--header", "Host: a/b"), 400),
    ],
)
def test_get_ends_with_1_on_an_error_status(
    tenantry: Tenantry, words: tuple[str, ...], status: int
) -> None:
    """`get` ends with 1 when the status is 400 or above."""
    result = tenantry("get", *words, "--json")

    assert (1, status) == (result.code, json.loads(result.out)["status"])


CUT = """
from flask import Blueprint, Response
cut_bp = Blueprint("cut", __name__)
@cut_bp.route("/half")
def half():
    yield "half"
    raise ValueError("no other half")
@cut_bp.route("/none")
def none():
    return Response([], headers={"Content-Length": "10"})
"""


@pytest.mark.usefixtures("data_dir")
def test_get_shows_what_came_of_an_answer_that_is_cut(
    tenantry: Tenantry,
    write_tenant: Callable[..., Path],
    write_endpoint: Callable[[str, str], str],
) -> None:
    """An app that fails in the middle of its body: `get` prints what came, says so, ends with 1."""
    write_tenant("acme", BLUEPRINTS=[write_endpoint("cut", CUT)])

    half, none = tenantry("get", "/acme/half"), tenantry("get", "/acme/none")

    head, _, body = half.out.partition("\n\n")
    assert (1, "HTTP/1.1 200 OK", "half") == (half.code, head.splitlines()[0], body)
    said = "the answer ends here: the application failed; its log line says why."
    assert f"tenantry: /acme/half: {said}" in half.err.splitlines()
    said = "no answer: the body is shorter than its Content-Length; its log line says why."
    assert (1, "") == (none.code, none.out)
    assert f"tenantry: /acme/none: {said}" in none.err.splitlines()


def test_new_writes_a_tenant_that_serves(
    tenantry: Tenantry, tenants_dir: Path, data_dir: Path
) -> None:
    """`new` writes a file and its secret (0600), and the tenant answers at once."""
    made = tenantry("new", "acme-shop", "--prefix", "/clients/acme")
    answer = tenantry("get", "/clients/acme/")

    key = data_dir / "secrets/ACME_SHOP_SECRET_KEY"
    assert (0, 0) == (made.code, answer.code)
    assert 0o600 == stat.S_IMODE(key.stat().st_mode)
    assert key.read_text().strip() not in (tenants_dir / "acme-shop.py").read_text() + made.out


def test_new_never_overwrites(tenantry: Tenantry, tenants_dir: Path, data_dir: Path) -> None:
    """`new` leaves a file or a secret that is there as it is, exit 1."""
    tenantry("new", "acme")
    before = (tenants_dir / "acme.py").read_bytes()
    again = tenantry("new", "acme")
    (tenants_dir / "acme.py").unlink()
    secret_there = tenantry("new", "acme")

    assert [1, 1] == [again.code, secret_there.code]
    assert (before, False) == (before, (tenants_dir / "acme.py").exists())
    assert (data_dir / "secrets/ACME_SECRET_KEY").exists()


def test_new_makes_no_secret_that_would_not_count(
    tenantry: Tenantry, tenants_dir: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the secret is set elsewhere already the fresh one would be nobody's: exit 1."""
    monkeypatch.setenv("ACME_SECRET_KEY", "MARKER")

    result = tenantry("new", "acme")

    assert (1, True) == (result.code, "environment variable ACME_SECRET_KEY" in result.err)
    assert "MARKER" not in result.err
    assert (False, False) == ((tenants_dir / "acme.py").exists(), data_dir.exists())


@pytest.mark.parametrize(
    "words",
    [
        ("shop", "--prefix", "/clients/acme"),
        ("shop", "--prefix", "/clients/acme/inner"),
        ("clients",),
        ("shop", "--prefix", "/broken"),
    ],
)
def test_new_refuses_a_place_that_is_another_tenants(
    tenantry: Tenantry,
    write_tenant: Callable[..., Path],
    data_dir: Path,
    words: tuple[str, ...],
) -> None:
    """Equal, inside or above, of a file that is rejected too: nothing is written, exit 1."""
    write_tenant("acme", URL_PREFIX="/clients/acme")
    write_tenant("broken", text="SECRET_KEY = (")

    result = tenantry("new", *words)

    assert (1, 1, False) == (result.code, len(result.err.splitlines()), data_dir.exists())


def test_new_does_not_mind_what_is_disabled_or_only_looks_alike(
    tenantry: Tenantry, write_tenant: Callable[..., Path]
) -> None:
    """A disabled tenant has no place, and whole segments count."""
    write_tenant("acme", URL_PREFIX="/clients/acme", ENABLED=False)
    write_tenant("globex", URL_PREFIX="/clients/acme-2")

    assert 0 == tenantry("new", "shop", "--prefix", "/clients/acme").code


@pytest.mark.usefixtures("acme")
def test_run_is_flask_inside_the_tenant(tenantry: Tenantry) -> None:
    """`run` hands its words to Flask's command line with the tenant's app."""
    result = tenantry("run", "acme", "--", "routes")

    assert (0, True) == (result.code, "landing.landingpage" in result.out)


@pytest.mark.usefixtures("acme", "data_dir")
def test_the_start_report_names_all(
    settings: HostSettings, write_tenant: Callable[..., Path]
) -> None:
    """`serve` says what is served where, and why a file is rejected."""
    write_tenant("broken", text="1 +")

    lines = start_report(settings, scan(settings), "127.0.0.1:80")

    assert f"1 tenant from {settings.tenants_dir}:" == lines[0]
    assert "  acme  http://127.0.0.1:80/acme/" in lines
    assert 1 == len([line for line in lines if "broken.py:1: syntax error" in line])


@pytest.fixture(name="write_endpoint")
def _write_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Return a function that writes an endpoint's blueprint, and returns its dotted name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> str:
        package = tmp_path / "extra" / name
        package.mkdir(parents=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "blueprint.py").write_text(text)
        return f"extra.{name}"

    return write


@pytest.fixture(name="_short_timeout")
def _fixture_short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a hanging build be told after a second."""
    monkeypatch.setattr(tenantry.app.trial_build, "BUILD_TIMEOUT_S", 1.0)


NEEDS_CONFIG = """
from flask import Blueprint
needing_bp = Blueprint("needing", __name__)
needing_bp.record(lambda state: state.app.config["SHOP_ID"])
"""


@pytest.mark.live
@pytest.mark.usefixtures("_short_timeout", "data_dir")
@pytest.mark.parametrize("is_check", [True, False])
def test_no_endpoint_stops_check_or_serve(
    tenantry: Tenantry,
    settings: HostSettings,
    write_tenant: Callable[..., Path],
    write_endpoint: Callable[[str, str], str],
    is_check: bool,
) -> None:
    """Endpoints that end, kill or hang their process cost the tenants that enable them."""
    ending = write_endpoint("ending", "import os\nprint('x')\nos._exit(0)\n")
    killing = write_endpoint("killing", "import os\nos.kill(os.getpid(), 9)\n")
    hanging = write_endpoint("hanging", "import threading\nthreading.Event().wait()\n")
    needing = write_endpoint("needing", NEEDS_CONFIG)
    write_tenant("a", BLUEPRINTS=["landing", ending])
    write_tenant("b", BLUEPRINTS=[hanging, killing])
    write_tenant("c", BLUEPRINTS=["landing", needing])
    write_tenant("d", BLUEPRINTS=[needing], SHOP_ID=7)
    write_tenant("e", BLUEPRINTS=[ending])

    if is_check:
        told = tenantry("check").out
    else:
        told = "\n".join(start_report(settings, scan(settings), "127.0.0.1:80"))

    end = "ends its process (exit code 0); mend the endpoint."
    wrong = [
        f"a.py: 'BLUEPRINTS[1]': endpoint 'extra.ending' {end}",
        "b.py: 'BLUEPRINTS[0]': endpoint 'extra.hanging' does not finish in 1 s;",
        "b.py: 'BLUEPRINTS[1]': endpoint 'extra.killing' ends its process (SIGKILL);",
        "c.py: 'BLUEPRINTS[1]': endpoint 'extra.needing' fails to register: KeyError: 'SHOP_ID'",
        f"e.py: 'BLUEPRINTS[0]': endpoint 'extra.ending' {end}",
    ]
    assert dict.fromkeys(wrong, 1) == {text: told.count(text) for text in wrong}
    assert len(wrong) == told.count(".py: ")


@pytest.mark.live
@pytest.mark.usefixtures("data_dir")
def test_check_finds_keys_that_flask_stumbles_over(
    tenantry: Tenantry, write_tenant: Callable[..., Path]
) -> None:
    """A key that only a request shows to be nonsense is found by `check`."""
    write_tenant("acme", SERVER_NAME=7)

    assert "tenants/acme.py: cannot be built: " in tenantry("check").out


@pytest.mark.live
@pytest.mark.usefixtures("data_dir")
def test_check_looks_at_a_disabled_tenant_when_it_is_named(
    tenantry: Tenantry, write_tenant: Callable[..., Path]
) -> None:
    """Else it is as if its file were not there."""
    write_tenant("acme")
    write_tenant("globex", ENABLED=False, RATE_LIMIT="often")

    assert [0, 1] == [tenantry("check").code, tenantry("check", "globex").code]


def test_serve_knows_the_tenants_that_it_is_to_serve(
    tenantry: Tenantry, monkeypatch: pytest.MonkeyPatch, write_tenant: Callable[..., Path]
) -> None:
    """A name that has no file is an error that lists those that have one; exit 2."""
    monkeypatch.setenv("TENANTRY_ONLY", "")
    write_tenant("acme")

    result = tenantry("serve", "--only", "acne")

    text = "tenantry: no tenant named 'acne'; tenants: acme.\n"
    assert (2, "", text) == (result.code, result.out, result.err)


@pytest.mark.parametrize(
    ("bind", "reason"),
    [
        ("unix:nowhere/t.sock", "there is no folder nowhere"),
        ("unix:tenants", "there is a file that is no socket"),
        (f"unix:{'t' * 108}", "its path is longer than 107 bytes"),
        ("unix:taken.sock", "another server listens there"),
        ("127.0.0.1:{taken}", "Address already in use"),
        ("192.0.2.1:80", "Cannot assign requested address"),
    ],
)
@pytest.mark.usefixtures("acme")
def test_serve_names_the_listener_that_cannot_be_opened(
    tenantry: Tenantry, tmp_path: Path, bind: str, reason: str
) -> None:
    """One line: the option, the listener and why; exit 1, before gunicorn tries for seconds."""
    with socket.socket() as taken, socket.socket(socket.AF_UNIX) as taken_path:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        taken_path.bind(os.path.relpath(tmp_path / "taken.sock"))
        taken_path.listen()
        bind = bind.format(taken=taken.getsockname()[1])

        result = tenantry("serve", "--bind", bind)

    text = f"tenantry: --bind: cannot listen on {bind}: {reason}; name another.\n"
    assert (1, "", text) == (result.code, result.out, result.err)


@pytest.mark.usefixtures("acme")
def test_serve_names_the_variable_of_a_listener(
    tenantry: Tenantry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operators' listener is set by a variable: that is what has to be changed."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("TENANTRY_ADMIN_BIND", f"127.0.0.1:{taken.getsockname()[1]}")

        result = tenantry("serve", "--bind", f"127.0.0.1:{free_port()}")

    assert (1, True) == (
        result.code,
        result.err.startswith("tenantry: TENANTRY_ADMIN_BIND: cannot listen on 127.0.0.1:"),
    )


def test_a_socket_that_nobody_listens_on_is_no_obstacle(tmp_path: Path) -> None:
    """Gunicorn replaces what a server that was killed left behind."""
    path = tmp_path / "old.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))

    check_listeners([Listener("--bind", f"unix:{path}")])

    assert path.is_socket()


@pytest.mark.live
def test_the_command_is_installed(tmp_path: Path) -> None:
    """`tenantry` without a command shows its help and ends with 2."""
    program = Path(sys.executable).with_name("tenantry")

    result = subprocess.run(
        [program], cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ)
    )

    assert (2, True) == (result.returncode, result.stdout.startswith("Usage: tenantry"))
