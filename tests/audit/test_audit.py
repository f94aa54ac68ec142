"""The audit finds each leak between tenants with its line, and reports no false positives."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from built_tenants import build, make_tenant
from click.testing import CliRunner
from werkzeug.test import Client

import leaks
import redis_server
from tenantry.app.factory import close_app, create_app
from tenantry.audit import process_snapshot
from tenantry.audit.finding import Finding
from tenantry.audit.libraries import LibraryObjects
from tenantry.audit.process_snapshot import CodeOwners
from tenantry.audit.run import audit
from tenantry.audit.written_files import WrittenFiles
from tenantry.cli.audit import audit_folder, command
from tenantry.host import Host
from tenantry.settings import HostSettings

pytestmark = pytest.mark.live

WriteTenant = Callable[..., Path]
FindProblems = Callable[[], dict[str, Finding]]


@pytest.fixture(name="here")
def _here(corp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, in which tests write endpoints of the package `corp`.

    The folder is on `sys.path` and is not `APP_DIR`, so tenants share the modules beside endpoints.
    """
    (corp / "own").mkdir()
    monkeypatch.setenv("TENANTRY_APP_DIR", str(corp / "own"))
    monkeypatch.chdir(corp)
    return corp


@pytest.fixture(name="redis_url")
def _redis_url() -> Iterator[str]:
    """Return the URL of an empty Redis server."""
    with redis_server.running() as redis:
        yield redis.url


@pytest.fixture(name="find_problems")
def _find_problems(here: Path, settings: HostSettings) -> FindProblems:
    """Return a function that audits all tenants and returns the problems by finding ID."""
    del here

    def run() -> dict[str, Finding]:
        return {finding.id: finding for finding in audit_folder(settings)[0] if finding.is_problem}

    return run


# -- planted leaks -----------------------------------------------------------------------------


def test_leaks_in_code_are_found_each_with_its_line(
    here: Path, find_problems: FindProblems, write_tenant: WriteTenant
) -> None:
    """The audit reports each planted leak once, with the line that leaks."""
    planted = leaks.plant_in_code(here)
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[*planted.values()])

    found = find_problems()

    assert planted.keys() == found.keys()
    assert {"leak"} == {line_at(finding.place).rpartition("# ")[2] for finding in found.values()}


def line_at(place: str) -> str:
    """Return the line of code that a finding names."""
    file, _, number = place.rpartition(":")
    return Path(file).read_text().splitlines()[int(number) - 1]


def test_leaks_in_files_are_found(here: Path, find_problems: FindProblems, data_dir: Path) -> None:
    """If two tenants share a key, database or folder, the audit's finding names both tenants."""
    (here / "tenants").mkdir(exist_ok=True)
    planted = leaks.plant_in_files(here, data_dir)

    found = find_problems()

    assert planted == {id_: tuple(sorted(finding.tenants)) for id_, finding in found.items()}


def test_each_unsafe_setting_is_found_with_its_line(
    here: Path, find_problems: FindProblems, data_dir: Path, write_tenant: WriteTenant
) -> None:
    """For each unsafe setting, the audit names the line of the tenant file that sets the key."""
    del here
    wanted = leaks.unsafe_settings(data_dir)
    write_tenant("acme", **leaks.settings_of_acme())
    write_tenant("globex", **dict(wanted.values()))

    found = find_problems()

    assert wanted.keys() == found.keys()
    keys = {id_: line_at(finding.place).partition(" ")[0] for id_, finding in found.items()}
    assert {id_: key for id_, (key, _) in wanted.items()} == keys
    assert {"tenants/globex.py"} == {finding.place.rpartition(":")[0] for finding in found.values()}


def test_crossings_through_extensions_are_found(
    here: Path, find_problems: FindProblems, write_tenant: WriteTenant, redis_url: str
) -> None:
    """The audit finds shared sessions, caches, rate limits, log files and upload folders."""
    planted = leaks.plant_crossings(here)
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[*planted], **leaks.keys_of_crossings(redis_url))

    found = find_problems()

    assert set().union(*planted.values()) == found.keys()
    assert {("acme", "globex")} == {tuple(sorted(finding.tenants)) for finding in found.values()}
    assert [] == [entry.name for entry in (here / "sessions").iterdir() if "session" in entry.name]


def test_prefixes_of_their_own_keep_tenants_apart(
    here: Path, find_problems: FindProblems, write_tenant: WriteTenant, redis_url: str
) -> None:
    """The audit reports nothing if each tenant has its own key prefix on one Redis server."""
    code = leaks.CACHED.replace(', "CACHE_KEY_PREFIX": "shop:"', "")
    limited = leaks.LIMITED.replace(', key_prefix="shop"', "").replace("limited_bp", "caching_bp")
    endpoint = leaks.write_endpoint(here, "caching", blueprint=code + limited)
    for name in ("acme", "globex"):
        prefixes = {"CACHE_KEY_PREFIX": f"{name}:", "RATELIMIT_KEY_PREFIX": name}
        keys = leaks.keys_of_crossings(redis_url) | prefixes
        write_tenant(name, BLUEPRINTS=[endpoint], **keys)

    assert {} == find_problems()


def test_a_store_without_an_answer_is_unproven(
    here: Path, find_problems: FindProblems, write_tenant: WriteTenant
) -> None:
    """The audit reports a limiter whose Redis server is not reachable, and does not crash."""
    endpoint = leaks.write_endpoint(here, "limited", blueprint=leaks.LIMITED)
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[endpoint], RATELIMIT_STORAGE_URI="redis://127.0.0.1:1/0")

    assert "it raises ConnectionError" in find_problems()["store-unproven:rate-limiter"].text


def test_a_path_leads_from_the_view_to_the_name(
    here: Path, find_problems: FindProblems, write_tenant: WriteTenant
) -> None:
    """A finding shows how each of the two apps reaches the object that both apps share."""
    endpoint = leaks.write_endpoint(here, "shop", models="_cache = {}\n")
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[endpoint])

    paths = find_problems()["shared:shop.models._cache"].paths

    way = "view shop.page → Page.get → module resources → PageModel.answer → module models → _cache"
    assert (f"acme: {way}", f"globex: {way}") == paths


def test_helpers_in_an_installed_distribution_are_examined(
    here: Path,
    find_problems: FindProblems,
    write_tenant: WriteTenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The audit treats an endpoint's top-level package as tenant code, even if pip installed it."""
    libraries = (*process_snapshot.library_folders(), f"{here}/")
    monkeypatch.setattr(process_snapshot, "library_folders", lambda: libraries)
    endpoint = leaks.write_endpoint(here, "shop", resources="\nfrom corp import basket\n")
    (here / "corp/basket.py").write_text("_baskets = {}  # leak\n")
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[endpoint])

    found = find_problems()

    assert ["shared:corp.basket._baskets"] == [*found]
    assert "_baskets = {}  # leak" == line_at(found["shared:corp.basket._baskets"].place)


def test_state_in_resources_is_not_a_finding(
    here: Path, find_problems: FindProblems, write_tenant: WriteTenant
) -> None:
    """The audit accepts a module-level dict in `resources.py`; each app has its own copy."""
    endpoint = leaks.write_endpoint(here, "shop")
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[endpoint])

    assert {} == find_problems()


def test_constants_and_tables_are_not_a_finding(
    here: Path, find_problems: FindProblems, write_tenant: WriteTenant
) -> None:
    """The audit accepts that tenants share immutable objects, loggers and table mappings."""
    endpoint = leaks.write_endpoint(here, "shop", models=HARMLESS)
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[endpoint])

    assert {} == find_problems()


HARMLESS = """
import enum, functools, logging, re, threading
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_logger = logging.getLogger(__name__)
RATES = MappingProxyType({"EUR": 1})
PATTERN = re.compile("x")
CURRENT = ContextVar("current")
add = functools.partial(max, 1, key=None)


class Colour(enum.Enum):
    RED = 1


class Pair(NamedTuple):
    one: int = 1


@dataclass(frozen=True)
class Price:
    value: int = 1
    parts: list[int] = field(default_factory=list)


FREE = Price


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    id: Mapped[int] = mapped_column(primary_key=True)

    @functools.cached_property
    def twice(self):
        return self.id * 2


ALL = select(Row)
"""


def test_what_an_app_owns_is_not_a_finding(
    here: Path, find_problems: FindProblems, write_tenant: WriteTenant
) -> None:
    """The audit allows an app to change its own lists, loggers, session, or warning filters."""
    endpoint = leaks.write_endpoint(here, "shop", resources=OWN)
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[endpoint])

    assert {} == find_problems()


OWN = """
import logging, logging.config, os, sys, warnings
from flask import current_app, session
from jinja2 import defaults

tests = dict(defaults.DEFAULT_TESTS)
method_decorators = list(Resource.method_decorators)
_log = logging.getLogger(__name__)
_log.setLevel("INFO")


def keep(value, path):
    def environ(): ...
    environ.update = path.append
    path.append(value)
    session["last"] = value
    current_app.config["LAST"] = [*sys.path, os.environ.get(value)]
    current_app.jinja_env.filters.update(last=value)
    current_app.logger.setLevel(value)
    logging.getLogger(__name__).handlers.clear()
    method_decorators.append(value)
    tests["last"] = value
    with warnings.catch_warnings(), open(os.devnull):
        warnings.simplefilter("error")


class Own(Page):
    decorators = []
    method_decorators = [*Page.method_decorators]

    def __init__(self):
        self.methods = set()

    def keep(self, value):
        self.methods.add(value)
        type(self).decorators.append(value)
        Own.method_decorators.append(value)
        self.unheard_of.append(value)
"""


# -- no leaks ------------------------------------------------------------------------


NOTES = {"one-origin", "one-process", "open", "trusted-hosts-missing"}


def test_the_samples_have_no_problems(
    settings: HostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An audit of the sample tenants finds no problems.

    The audit only notes that the sample tenants are open and share a process.
    """
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    samples = settings.model_copy(update={"tenants_dir": Path("tenants")})

    findings, count = audit_folder(samples)

    assert (3, []) == (count, [one for one in findings if one.is_problem])
    assert NOTES == {one.id for one in findings}


def test_apps_that_have_worked_share_nothing(host: Host) -> None:
    """After requests that use templates and routes, two apps still share no mutable object."""
    libraries = LibraryObjects(CodeOwners(()))
    endpoints = ["landing", "images"]
    tenants = [(make_tenant(host, name, BLUEPRINTS=endpoints), "") for name in ("acme", "globex")]
    with libraries.recording():
        built = build(host, *tenants)
    for audited in built:
        with audited.app.app_context():
            assert "1" == audited.app.jinja_env.from_string("{{ 1|tojson }}").render()
        Client(host).get(f"/{audited.name}/").close()
        Client(host).get(f"/{audited.name}/images/").close()

    findings = audit(built, host.settings.data_dir, libraries, WrittenFiles())

    assert [] == [finding.id for finding in findings if finding.is_problem]


def test_two_apps_have_policies_of_their_own(data_dir: Path) -> None:
    """Changing Jinja's policies in one app does not affect other apps."""
    config = {"SECRET_KEY": "k" * 32, "BLUEPRINTS": ["landing"]}
    one, other = [
        create_app(config | {"APP_NAME": name}, data_dir=data_dir) for name in ("acme", "globex")
    ]
    one.jinja_env.policies["json.dumps_kwargs"]["indent"] = 4

    assert {"sort_keys": True} == other.jinja_env.policies["json.dumps_kwargs"]
    close_app(one)
    close_app(other)


def test_an_audit_runs_no_property_and_resolves_no_proxy(
    here: Path, find_problems: FindProblems, write_tenant: WriteTenant
) -> None:
    """An audit evaluates no property and resolves no proxy of an endpoint."""
    endpoint = leaks.write_endpoint(here, "shop", resources=LAZY)
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[endpoint])

    assert {} == find_problems()


LAZY = """
import functools
from werkzeug.local import LocalProxy


def woken(*_):
    raise RuntimeError("woken")


class Lazy:
    __getattr__ = __iter__ = __eq__ = __bool__ = woken
    __hash__ = object.__hash__
    early = property(woken)
    late = functools.cached_property(woken)


lazy = [Lazy(), Lazy()]
proxy = LocalProxy(woken)
"""


# -- the command -------------------------------------------------------------------------------


@pytest.fixture(name="leaking")
def _leaking(here: Path, data_dir: Path) -> str:
    """Write an endpoint that leaks between tenants."""
    del data_dir
    return leaks.write_endpoint(here, "shop", models="_cache = {}\n")


def run(*words: str) -> tuple[int, dict[str, object]]:
    """Run `tenantry audit`; return the exit code and the parsed JSON."""
    result = CliRunner().invoke(command, [*words, "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_a_problem_is_printed_and_exits_1(leaking: str, write_tenant: WriteTenant) -> None:
    """If `tenantry audit` finds a problem, it exits with 1 and names the tenants and the place."""
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[leaking])

    code, document = run()

    findings = [one for one in document["findings"] if one["state"] == "finding"]  # type: ignore[attr-defined]
    assert 1 == code
    assert [("shared:shop.models._cache", ["acme", "globex"], "corp/shop/models.py:4")] == [
        (one["id"], one["tenants"], one["place"]) for one in findings
    ]


@pytest.mark.parametrize(("accepting", "expected"), [(("acme", "globex"), 0), (("acme",), 1)])
def test_a_finding_that_all_its_tenants_accept_does_not_fail(
    leaking: str, write_tenant: WriteTenant, accepting: tuple[str, ...], expected: int
) -> None:
    """An audit passes despite a finding only if all affected tenants list it in `AUDIT_ACCEPT`."""
    accepted = {"shared:shop.models._cache": "prices are public"}
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[leaking], AUDIT_ACCEPT=accepted if name in accepting else {})

    assert expected == run()[0]


def test_an_unused_acceptance_is_noted(
    here: Path, write_tenant: WriteTenant, data_dir: Path
) -> None:
    """The audit notes an `AUDIT_ACCEPT` entry that matches no finding."""
    del here, data_dir
    write_tenant("acme", AUDIT_ACCEPT={"shared:gone": "it was once"})

    code, document = run()

    notes = {one["id"] for one in document["findings"] if one["state"] == "note"}  # type: ignore[attr-defined]
    assert (0, True) == (code, "accepts-nothing:shared:gone" in notes)


def test_a_tenant_that_cannot_be_built_is_a_problem(
    here: Path, write_tenant: WriteTenant, data_dir: Path
) -> None:
    """`tenantry audit` reports a tenant that cannot be built as a problem."""
    del data_dir
    write_tenant("acme", BLUEPRINTS=[leaks.write_endpoint(here, "bad", resources="1 / 0\n")])
    write_tenant("globex", SECRET_KEY=None)

    code, document = run()

    assert (1, {"not-audited"}) == (code, {one["id"] for one in document["findings"]})  # type: ignore[attr-defined]


def test_an_audit_changes_no_database(
    find_problems: FindProblems, write_tenant: WriteTenant, data_dir: Path
) -> None:
    """`tenantry audit` creates no database files and runs no migrations."""
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=["images"])

    assert ({}, []) == (find_problems(), [*data_dir.rglob("*.sqlite3")])
