"""The audit finds what crosses between tenants and where; where nothing does, it is silent."""

import json
from collections.abc import Callable
from multiprocessing import Value
from pathlib import Path

import pytest
from click.testing import CliRunner
from flask import Flask
from werkzeug.test import Client

import leaks
from conftest import KEY
from tenantry.app.factory import close_app, create_app
from tenantry.audit import object_graph
from tenantry.audit.finding import AuditedTenant, Finding
from tenantry.audit.replay import ReplayResult, prepare_for_audit, replay, replay_findings
from tenantry.audit.run import audit
from tenantry.audit.settings_check import check_settings
from tenantry.audit.shared_objects import process_listeners
from tenantry.cli.audit import audit_folder, command
from tenantry.host import Host
from tenantry.middleware.authentication import Authentication
from tenantry.settings import HostSettings
from tenantry.tenants.clients import hash_client_key
from tenantry.tenants.model import Tenant, parse_tenant

pytestmark = pytest.mark.live

Value("B")  # Werkzeug's debugger makes one, whose memory stays: no leak of a test

WriteTenant = Callable[..., Path]
Audit = Callable[[], dict[str, Finding]]


@pytest.fixture(name="here")
def _here(corp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder above both folders, from which endpoints of `corp` are imported."""
    monkeypatch.chdir(corp)
    return corp


@pytest.fixture(name="counting")
def _counting(here: Path, settings: HostSettings) -> Audit:
    """Return a function that audits the folder: id → each finding that counts."""
    del here

    def run() -> dict[str, Finding]:
        return {one.id: one for one in audit_folder(settings)[0] if one.is_problem}

    return run


def new_key(name: str) -> str:
    """Return a key that is the tenant's own."""
    return f"{name}-{KEY}"


def audited_by(host: Host, *names: str, **keys: object) -> list[AuditedTenant]:
    """Build tenants and put them behind the host."""
    found = []
    tenants = [
        host_tenant(name, {"SECRET_KEY": new_key(name), "BLUEPRINTS": ["landing"]} | keys, host)
        for name in names
    ]
    for mount in host.serve_only(tenants):
        mount.ensure_instance()
        assert mount.instance is not None
        assert mount.instance.app is not None
        assert mount.tenant is not None
        app = mount.instance.app()
        assert isinstance(app, Flask)
        found.append(AuditedTenant(mount.tenant, app, host))
    return found


def host_tenant(name: str, keys: dict[str, object], host: Host) -> Tenant:
    """Return a tenant as a file of its own would make it."""
    return parse_tenant(name, keys, data_dir=host.settings.data_dir)


# -- leaks that are planted --------------------------------------------------------------------


def test_leaks_in_code_are_found_each_with_its_line(
    here: Path, counting: Audit, write_tenant: WriteTenant
) -> None:
    """Objects, receivers, handlers and peeping: one finding each, whose line is the leak's."""
    planted = leaks.plant_in_code(here)
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[*planted.values()])

    found = counting()

    assert planted.keys() == found.keys()
    assert {"leak"} == {line_at(one.place).rpartition("# ")[2] for one in found.values()}


def line_at(place: str) -> str:
    """Return the line that a finding names."""
    file, _, number = place.rpartition(":")
    return Path(file).read_text().splitlines()[int(number) - 1]


def test_leaks_in_files_are_found(here: Path, counting: Audit, data_dir: Path) -> None:
    """A copied key, a session that is accepted, links to one database and folder, wide cookies."""
    (here / "tenants").mkdir(exist_ok=True)
    planted = leaks.plant_in_files(here, data_dir)

    found = counting()

    assert planted == {id_: tuple(sorted(one.tenants)) for id_, one in found.items()}


def test_each_unsafe_setting_is_found_with_its_line(
    here: Path, counting: Audit, data_dir: Path, write_tenant: WriteTenant
) -> None:
    """Weak keys, wide cookies, what lies inside a neighbour's, keys and tokens good at both."""
    del here
    wanted = leaks.unsafe_settings(data_dir)
    write_tenant("acme", **leaks.settings_of_acme())
    write_tenant("globex", **dict(wanted.values()))

    found = counting()

    assert wanted.keys() == found.keys()
    keys = {id_: line_at(one.place).partition(" ")[0] for id_, one in found.items()}
    assert {id_: key for id_, (key, _) in wanted.items()} == keys
    assert {"tenants/globex.py"} == {one.place.rpartition(":")[0] for one in found.values()}


@pytest.mark.parametrize(
    ("mounted", "expected"),
    [
        (("credentials", 0o755), [True]),
        (("credentials", 0o700), []),
        (("container", 0o755), [False]),
    ],
)
def test_secrets_that_are_mounted_are_looked_at(
    here: Path,
    settings: HostSettings,
    monkeypatch: pytest.MonkeyPatch,
    mounted: tuple[str, int],
    expected: list[bool],
) -> None:
    """Those of systemd count; in a container, where all may read them, it is a note."""
    folder = here / mounted[0]
    folder.mkdir()
    (folder / "ACME_KEY").write_text("acme-0123456789abcdef0123456789ABCDEF")
    (folder / "ACME_KEY").chmod(0o644)
    folder.chmod(mounted[1])
    monkeypatch.setenv("ACME_KEY", "acme-0123456789abcdef0123456789ABCDEF")  # for the loader
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(here / "credentials"))
    monkeypatch.setattr("tenantry.tenants.secrets.CONTAINER_SECRETS", str(here / "container"))
    (here / "tenants").mkdir(exist_ok=True)
    text = (
        "from tenantry import secret\nSECRET_KEY = secret('ACME_KEY')\nBLUEPRINTS = ['landing']\n"
    )
    (here / "tenants/acme.py").write_text(text)

    found = audit_folder(settings)[0]

    assert expected == [one.is_problem for one in found if one.id == "readable-secret:ACME_KEY"]


def test_the_path_leads_from_the_view_to_the_name(
    here: Path, counting: Audit, write_tenant: WriteTenant
) -> None:
    """Both sides say how they come to the object, in an author's words."""
    endpoint = leaks.write_endpoint(here, "shop", models="_cache = {}\n")
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[endpoint])

    paths = counting()["shared:shop.models._cache"].paths

    way = "view shop.page → Page.get → module resources → PageModel.answer → module models → _cache"
    assert (f"acme: {way}", f"globex: {way}") == paths


def test_helpers_of_an_installed_distribution_are_looked_at(
    here: Path, counting: Audit, write_tenant: WriteTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands beside an endpoint is the operator's, also where libraries are installed."""
    libraries = (*object_graph._library_folders(), f"{here}/")
    monkeypatch.setattr(object_graph, "_library_folders", lambda: libraries)
    endpoint = leaks.write_endpoint(here, "shop", resources="\nfrom corp import basket\n")
    (here / "corp/basket.py").write_text("_baskets = {}  # leak\n")
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[endpoint])

    found = counting()

    assert ["shared:corp.basket._baskets"] == [*found]
    assert "_baskets = {}  # leak" == line_at(found["shared:corp.basket._baskets"].place)


def test_state_of_resources_is_no_finding(
    here: Path, counting: Audit, write_tenant: WriteTenant
) -> None:
    """A module-level dictionary in resources.py exists once per app."""
    endpoint = leaks.write_endpoint(here, "shop")
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[endpoint])

    assert {} == counting()


def test_constants_and_tables_are_no_finding(
    here: Path, counting: Audit, write_tenant: WriteTenant
) -> None:
    """What nobody can write, loggers, and the mappings of tables may be shared."""
    endpoint = leaks.write_endpoint(here, "shop", models=HARMLESS)
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[endpoint])

    assert {} == counting()


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


def test_what_is_an_apps_own_is_no_finding(
    here: Path, counting: Audit, write_tenant: WriteTenant
) -> None:
    """Own copies of a library's lists, own loggers, the session and filters that are put back."""
    endpoint = leaks.write_endpoint(here, "shop", resources=OWN)
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[endpoint])

    assert {} == counting()


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


# -- nothing is planted ------------------------------------------------------------------------


NOTES = {"one-origin", "one-process", "open", "trusted-hosts-missing"}


def test_the_samples_have_no_finding(
    settings: HostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes with Tenantry is isolated; that it is open, and in one process, is noted."""
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    samples = settings.model_copy(update={"tenants_dir": Path("tenants")})

    findings, count = audit_folder(samples)

    assert (3, []) == (count, [one for one in findings if one.is_problem])
    assert NOTES == {one.id for one in findings}


def test_apps_that_have_worked_share_nothing(host: Host) -> None:
    """Templates and routes in use, landing and images: still no object of two apps."""
    listeners = process_listeners()
    audited = audited_by(host, "acme", "globex", BLUEPRINTS=["landing", "images"])
    for one in audited:
        with one.app.app_context():
            assert "1" == one.app.jinja_env.from_string("{{ 1|tojson }}").render()
        Client(host).get(f"/{one.name}/").close()
        Client(host).get(f"/{one.name}/images/").close()

    found = audit(audited, host.settings.data_dir, known_listeners=listeners)
    assert [] == [one.id for one in found if one.is_problem]


def test_two_apps_have_policies_of_their_own(data_dir: Path) -> None:
    """What one app changes in Jinja's policies, the next one does not see."""
    config = {"SECRET_KEY": "k" * 32, "BLUEPRINTS": ["landing"]}
    one, other = [
        create_app(config | {"APP_NAME": name}, data_dir=data_dir) for name in ("acme", "globex")
    ]
    one.jinja_env.policies["json.dumps_kwargs"]["indent"] = 4

    assert {"sort_keys": True} == other.jinja_env.policies["json.dumps_kwargs"]
    close_app(one)
    close_app(other)


def test_an_audit_runs_no_property_and_resolves_no_proxy(
    here: Path, counting: Audit, write_tenant: WriteTenant
) -> None:
    """Lazy things of an endpoint sleep on: each would raise."""
    endpoint = leaks.write_endpoint(here, "shop", resources=LAZY)
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[endpoint])

    assert {} == counting()


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


# -- replays -----------------------------------------------------------------------------------


def test_no_tenant_accepts_what_another_signed_with_the_same_key(host: Host) -> None:
    """Ten tenants, one key: of 90 pairs none, and each accepts its own."""
    names = [f"t{number}" for number in range(10)]

    done = replay(audited_by(host, *names, SECRET_KEY=KEY))

    assert ReplayResult(pair_count=90) == done


def test_sessions_of_all_other_tenants_are_replayed(host: Host) -> None:
    """An app that accepts the sessions of two other tenants is reported for both."""
    audited = audited_by(host, "acme", "globex", "initech", SECRET_KEY=KEY)
    for one in audited[1:]:
        one.app.session_interface = audited[0].app.session_interface

    done = replay(audited)

    assert 6 == len([kind for kind, *_ in done.accepted if kind == "session"])


def test_a_tenant_in_maintenance_is_replayed_at_its_app(host: Host) -> None:
    """The mount answers 503; the app behind it is asked."""
    audited = audited_by(host, "acme", "globex", MAINTENANCE=True)

    assert ReplayResult(pair_count=2) == replay(audited)


PLAIN: dict[str, object] = {"SECRET_KEY": KEY, "BLUEPRINTS": ["landing"]}


def gated(name: str, host: Host, *foreign: str, **keys: object) -> tuple[Tenant, str]:
    """Return a tenant with a client, made for an audit, and its key; others may have keys too."""
    clients = {f"c{number}": hash_client_key(key) for number, key in enumerate([name, *foreign])}
    own = {"SECRET_KEY": new_key(name), "CLIENTS": clients}
    return prepare_for_audit(host_tenant(name, PLAIN | own | keys, host))


def put_behind(host: Host, pairs: list[tuple[Tenant, str]]) -> list[AuditedTenant]:
    """Build tenants that were made for an audit."""
    found = []
    for mount, (tenant, key) in zip(host.serve_only([one for one, _ in pairs]), pairs, strict=True):
        mount.ensure_instance()
        assert mount.instance is not None
        assert mount.instance.app is not None
        app = mount.instance.app()
        assert isinstance(app, Flask)
        found.append(AuditedTenant(tenant, app, host, key))
    return found


def test_a_client_of_one_tenant_gets_into_no_other(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """Its key, which lets in at home, is played at the gate of every other, and fills no log."""
    openid = {"OIDC": leaks.ISSUER}
    pairs = [gated("acme", host, MAINTENANCE=True), gated("globex", host, **openid)]
    pairs.append(prepare_for_audit(host_tenant("initech", PLAIN | openid, host)))

    done = replay(put_behind(host, pairs))

    assert (ReplayResult(pair_count=6), []) == (done, caplog.records)


def test_a_key_that_lets_in_at_two_tenants_is_found(host: Host) -> None:
    """The gate is asked, not the hashes that stand beside each other."""
    acme = gated("acme", host)
    pairs = [acme, gated("globex", host, acme[1])]

    done = replay(put_behind(host, pairs))

    assert [("client key", "acme", "globex")] == done.accepted


def test_a_gate_that_does_not_stand_is_found(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that spoils it for all is a mistake that a replay sees, as a stranger would."""
    monkeypatch.setattr(Authentication, "_client", lambda *_: "anybody")

    done = replay(put_behind(host, [gated("acme", host), gated("globex", host)]))

    found = {one.id: one.tenants for one in replay_findings(done, {"acme": "a", "globex": "g"})}
    assert (["acme", "globex"], ("globex", "acme")) == (
        done.unauthenticated,
        found["replay:client-key"],
    )


def test_an_open_gate_behind_a_rate_is_found(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate answers before the gate: the audit builds tenants without, and counts in no store."""
    monkeypatch.setattr(Authentication, "_client", lambda *_: "anybody")
    limits = {"RATE_LIMIT": "1/minute", "MAX_CONCURRENT_REQUESTS": 1}

    done = replay(put_behind(host, [gated(name, host, **limits) for name in ("acme", "globex")]))

    assert (["acme", "globex"], []) == (done.unauthenticated, done.unproven)


def test_who_turns_away_unlooked_has_proven_nothing(host: Host) -> None:
    """A 429 is no refusal of a key."""
    tenant, key = gated("acme", host)
    pairs = [(tenant.model_copy(update={"rate_limit": "1/hour"}), key), gated("globex", host)]

    assert ["acme"] == replay(put_behind(host, pairs)).unproven


# -- what one process shares ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("acme", "globex", "expected"),
    [
        (None, None, ["one-origin", "one-process"]),
        (["a.org"], None, ["one-origin", "one-process"]),
        (["a.org"], ["A.org", "b.org"], ["one-origin", "one-process"]),
        ([".a.org"], ["x.a.org"], ["one-origin", "one-process"]),
        ([".a.org"], [".x.a.org"], ["one-origin", "one-process"]),
        (["a.org"], [".a.org"], ["one-origin", "one-process"]),
        (["a.org"], ["b.org"], ["one-process"]),
        (["a.org"], [".x.a.org"], ["one-process"]),
        (["xa.org"], [".a.org"], ["one-process"]),
    ],
)
def test_what_one_process_cannot_give_is_noted(
    host: Host, acme: object, globex: object, expected: list[str]
) -> None:
    """One memory and interpreter always; one origin where a name leads to both."""
    pairs = [
        prepare_for_audit(host_tenant(name, PLAIN | {"TRUSTED_HOSTS": hosts}, host))
        for name, hosts in (("acme", acme), ("globex", globex))
    ]
    audited = put_behind(host, pairs)

    notes = check_settings(audited, host.settings.data_dir, ())

    assert expected == sorted(one.id for one in notes if one.id.startswith("one-"))


def test_a_tenant_by_itself_shares_nothing(host: Host) -> None:
    """With `serve --only` there is nobody to share with."""
    notes = check_settings(audited_by(host, "acme"), host.settings.data_dir, ())

    assert [] == [one.id for one in notes if one.id.startswith("one-")]


# -- the command -------------------------------------------------------------------------------


@pytest.fixture(name="leaking")
def _leaking(here: Path, data_dir: Path) -> str:
    """Write an endpoint that leaks."""
    del data_dir
    return leaks.write_endpoint(here, "shop", models="_cache = {}\n")


def run(*words: str) -> tuple[int, dict[str, object]]:
    """Run the command; return its exit code and document."""
    result = CliRunner().invoke(command, [*words, "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_a_finding_is_told_and_exits_1(leaking: str, write_tenant: WriteTenant) -> None:
    """The document names the finding, its tenants, line, paths and remedy."""
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[leaking])

    code, document = run()

    findings = [one for one in document["findings"] if one["state"] == "finding"]  # type: ignore[attr-defined]
    assert 1 == code
    assert [("shared:shop.models._cache", ["acme", "globex"], "corp/shop/models.py:4")] == [
        (one["id"], one["tenants"], one["place"]) for one in findings
    ]


@pytest.mark.parametrize(("who", "expected"), [(("acme", "globex"), 0), (("acme",), 1)])
def test_what_all_concerned_accept_does_not_fail(
    leaking: str, write_tenant: WriteTenant, who: tuple[str, ...], expected: int
) -> None:
    """No tenant can accept for its neighbour."""
    accepted = {"shared:shop.models._cache": "prices are public"}
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[leaking], AUDIT_ACCEPT=accepted if name in who else {})

    assert expected == run()[0]


def test_an_acceptance_of_nothing_is_noted(
    here: Path, write_tenant: WriteTenant, data_dir: Path
) -> None:
    """An entry whose finding is gone would hide the next one."""
    del here, data_dir
    write_tenant("acme", AUDIT_ACCEPT={"shared:gone": "it was once"})

    code, document = run()

    notes = {one["id"] for one in document["findings"] if one["state"] == "note"}  # type: ignore[attr-defined]
    assert (0, True) == (code, "accepts-nothing:shared:gone" in notes)


def test_a_tenant_that_cannot_be_built_is_a_finding(
    here: Path, write_tenant: WriteTenant, data_dir: Path
) -> None:
    """What was not looked at is not proven."""
    del data_dir
    write_tenant("acme", BLUEPRINTS=[leaks.write_endpoint(here, "bad", resources="1 / 0\n")])
    write_tenant("globex", SECRET_KEY=None)

    code, document = run()

    assert (1, {"not-audited"}) == (code, {one["id"] for one in document["findings"]})  # type: ignore[attr-defined]


def test_an_audit_changes_no_database(
    counting: Audit, write_tenant: WriteTenant, data_dir: Path
) -> None:
    """It makes no file and migrates no tables: `serve` and `db upgrade` do."""
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=["images"])

    assert ({}, []) == (counting(), [*data_dir.rglob("*.sqlite3")])
