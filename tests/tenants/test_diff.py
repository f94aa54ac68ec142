"""`tenantry plan` compares changed tenant files with a running host or with a snapshot."""

import contextlib
import io
import json
import stat
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from conftest import KEY, tenant_text
from tenantry.cli import main
from tenantry.host import Host
from tenantry.observability.control_socket import ControlSocket
from tenantry.settings import HostSettings
from tenantry.tenants.diff import describe
from tenantry.tenants.operator_state import OperatorState, write_operator_state
from tenantry.tenants.validation import parse_tenant

pytestmark = pytest.mark.live

Lines = tuple[int, list[str]]
Plan = Callable[..., Lines]

BROKEN_ENDPOINTS = {
    "raises": "raise RuntimeError('not today')\n",
    "exits": "import os\nos._exit(3)\n",
}
SAID = {"raises": "not today", "exits": "ends its process (exit code 3)"}


@pytest.fixture(name="plan")
def _plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plan:
    """Return a function that runs `plan WORDS…` and returns the exit code and all printed lines."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Lines:
        printed = io.StringIO()
        monkeypatch.setattr(sys, "argv", ["tenantry", "plan", *words])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            pytest.raises(SystemExit) as ended,
        ):
            main()
        return int(ended.value.code or 0), printed.getvalue().splitlines()

    return run


@pytest.fixture(name="serving")
def _serving(
    write_tenant: Callable[..., Path], settings: HostSettings, host: Host
) -> Iterator[None]:
    """Serve acme and globex from a host in the test process that has a control socket."""
    for name in ("acme", "globex"):
        write_tenant(name)
    host.load()
    told = ControlSocket(settings.data_dir, {"plan": host.report.plan})
    yield
    told.close()


def _with_secret(write_tenant: Callable[..., Path], key: str) -> None:
    path = write_tenant("acme")
    path.write_text(
        f"from tenantry import secret\n{key} = secret('ACME_OTHER')\n{path.read_text()}"
    )


@pytest.mark.usefixtures("serving")
def test_a_value_of_secret_is_not_shown(
    plan: Plan, write_tenant: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither `tenantry plan` nor a snapshot contains a value of `secret()`."""
    monkeypatch.setenv("ACME_OTHER", "hunter2-hunter2")
    _with_secret(write_tenant, "LOOKS_HARMLESS")

    code, lines = plan()
    plan("--save", str(tmp_path / "snapshot"))

    (line,) = lines
    assert (0, True) == (code, line.startswith("~ acme: LOOKS_HARMLESS: not set → ******** (#"))
    assert "hunter2" not in (tmp_path / "snapshot").read_text()


def test_a_worker_does_not_report_a_value_of_secret(
    host: Host, write_tenant: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's report about a tenant contains no value of `secret()`."""
    monkeypatch.setenv("ACME_OTHER", "hunter2-hunter2")
    _with_secret(write_tenant, "LOOKS_HARMLESS")

    host.load()

    assert "hunter2" not in json.dumps(host.report.plan("salt"))


def test_odd_values_are_described(tmp_path: Path) -> None:
    """`tenantry plan` can describe bytes that are not UTF-8, huge numbers and signaling NaNs."""
    keys = {"ODD": Decimal("sNaN"), "LONG": 10**5000, "HIDDEN": ["\udcff!" * 9]}
    values = {"SECRET_KEY": KEY, "BLUEPRINTS": ["landing"]} | keys
    tenant = parse_tenant("acme", values, data_dir=tmp_path, secrets=["\udcff!" * 9])

    told = describe(tenant, "salt")["keys"]

    assert ("HIDDEN",) == tenant.keys_with_secrets
    assert ("Decimal('sNaN')", "int too long to show") == (told["ODD"], told["LONG"])
    assert told["HIDDEN"].startswith("******** (#")


def test_a_disabled_tenant_may_be_broken(
    plan: Plan, write_tenant: Callable[..., Path], data_dir: Path
) -> None:
    """`tenantry plan` shows a disabled tenant as removed, even if its file is broken."""
    write_tenant("acme")
    plan("--save", "snapshot")
    write_tenant("acme", SECRET_KEY="short")
    write_operator_state(data_dir, "acme", OperatorState(is_disabled=True))

    assert (0, ["- acme: gone from /acme"]) == plan("--against", "snapshot")


@pytest.mark.usefixtures("serving")
def test_a_rotated_key_is_one_change(plan: Plan, write_tenant: Callable[..., Path]) -> None:
    """If a secret key is rotated, `tenantry plan` reports exactly one change."""
    write_tenant("acme", MAIL_PASSWORD="hunter2")
    _, before = plan()
    write_tenant("acme", MAIL_PASSWORD="hunter2", SECRET_KEY="k" * 40)
    plan("--save", "snapshot")
    write_tenant("acme", MAIL_PASSWORD="hunter2", SECRET_KEY="j" * 40)

    _, after = plan("--against", "snapshot")

    assert ["~ acme: MAIL_PASSWORD"] == [line[:21] for line in before]
    assert ["~ acme: SECRET_KEY: "] == [line[:20] for line in after]


@pytest.mark.usefixtures("serving")
def test_a_snapshot_is_for_its_owner(plan: Plan, tmp_path: Path) -> None:
    """A snapshot of `tenantry plan` has mode 0600, and leaves no temporary file behind."""
    folder = tmp_path / "snapshots"
    folder.mkdir()
    plan("--save", str(folder / "one.json"))

    (saved,) = folder.iterdir()
    assert 0o600 == stat.S_IMODE(saved.stat().st_mode)


@pytest.mark.usefixtures("serving")
def test_a_snapshot_that_cannot_be_written_is_one_line(plan: Plan) -> None:
    """If a snapshot cannot be written, `tenantry plan` prints the reason and exits with 1."""
    expected = "tenantry: cannot write /nonexistent/x: No such file or directory."

    assert (1, [expected]) == plan("--save", "/nonexistent/x")


@pytest.mark.usefixtures("serving")
def test_a_broken_change_stays_as_it_is(plan: Plan, write_tenant: Callable[..., Path]) -> None:
    """If a changed tenant file is broken, `tenantry plan` shows that the old version stays."""
    write_tenant("acme", SECRET_KEY="short")

    code, (stays, problem) = plan()

    assert 1 == code
    assert stays.startswith("~ acme: stays as it is: tenants/acme.py: 'SECRET_KEY': ")
    assert problem.startswith("! tenants/acme.py: 'SECRET_KEY': ")


@pytest.mark.usefixtures("serving")
def test_a_served_tenant_keeps_its_prefix(
    plan: Plan, write_tenant: Callable[..., Path], host: Host
) -> None:
    """`tenantry plan` rejects a new tenant that wants the URL prefix of a served tenant."""
    write_tenant("aaa", URL_PREFIX="/acme")

    code, lines = plan()
    host.follower.scan_soon()
    host.follower.catch_up()

    assert (1, 1) == (code, len(lines))
    assert lines[0].startswith(
        "! tenants/aaa.py: 'URL_PREFIX': /acme is also the prefix of tenant "
    )


@pytest.mark.usefixtures("serving")
def test_a_tenant_that_stays_keeps_its_prefix(
    plan: Plan, write_tenant: Callable[..., Path]
) -> None:
    """`tenantry plan` knows that a tenant whose change is rejected keeps its URL prefix."""
    write_tenant("acme", SECRET_KEY="short")
    write_tenant("globex", URL_PREFIX="/acme")
    write_tenant("initech", URL_PREFIX="/globex")

    code, lines = plan()

    kept = [line.split(":")[0] for line in lines if line.startswith("~")]
    assert (1, ["~ acme", "~ globex"]) == (code, kept)
    assert 3 == len([line for line in lines if line.startswith("! ")])


@pytest.mark.usefixtures("serving")
def test_two_tenants_cannot_swap_prefixes_in_one_save(
    plan: Plan, write_tenant: Callable[..., Path]
) -> None:
    """`tenantry plan` rejects two tenants that swap URL prefixes, and says what to do instead."""
    write_tenant("acme", URL_PREFIX="/globex")
    write_tenant("globex", URL_PREFIX="/acme")

    code, lines = plan()

    remedy = "To swap the prefixes of two tenants, first save one of their files with a free prefix"
    expected = [
        f"{sign} tenants/{name}.py: 'URL_PREFIX': /{owner} is also the prefix of tenant {owner!r}; "
        f"choose another. {remedy}."
        for sign, name, owner in (("!", "acme", "globex"), ("!", "globex", "acme"))
    ]
    assert (1, expected) == (code, [line for line in lines if line.startswith("!")])
    assert ["~ acme", "~ globex"] == [line.split(":")[0] for line in lines if line[0] == "~"]


@pytest.mark.usefixtures("serving")
def test_a_prefix_that_is_given_up_is_free(plan: Plan, write_tenant: Callable[..., Path]) -> None:
    """`tenantry plan` lets a tenant take the URL prefix that another tenant gives up."""
    write_tenant("acme", URL_PREFIX="/elsewhere")
    write_tenant("aaa", URL_PREFIX="/acme")

    code, lines = plan()

    assert (0, ["+ aaa: new at /acme, endpoints landing"]) == (code, lines[:1])


@pytest.mark.usefixtures("serving")
@pytest.mark.parametrize("kind", BROKEN_ENDPOINTS)
def test_an_endpoint_that_fails_is_a_problem(
    plan: Plan, write_tenant: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    """If a new endpoint ends or hangs its process, `tenantry plan` reports a problem."""
    package = tmp_path / f"shop_{kind}/orders"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("")
    (package / "blueprint.py").write_text(BROKEN_ENDPOINTS[kind])
    write_tenant("acme", BLUEPRINTS=["landing", f"shop_{kind}.orders"])

    code, (stays, problem) = plan()
    for name in (f"shop_{kind}", f"shop_{kind}.orders"):
        sys.modules.pop(name, None)

    assert 1 == code
    assert stays.startswith("~ acme: stays as it is: tenants/acme.py: 'BLUEPRINTS[1]': ")
    assert problem.startswith("! tenants/acme.py: 'BLUEPRINTS[1]': ")
    assert SAID[kind] in problem


@pytest.mark.usefixtures("serving")
def test_routes_of_a_new_endpoint_are_reported(
    plan: Plan, write_tenant: Callable[..., Path]
) -> None:
    """`tenantry plan` lists each new route with the tenant's URL prefix."""
    write_tenant("acme", BLUEPRINTS=["landing", "images"])

    code, lines = plan()

    assert (0, "~ acme: gains endpoint images") == (code, lines[0])
    assert "~ acme: gains GET /acme/images/" in lines


def test_a_worker_that_is_not_ready_is_not_compared_with(
    plan: Plan, settings: HostSettings, tenants_dir: Path
) -> None:
    """`tenantry plan` fails if no worker of the host has loaded all tenants."""
    (tenants_dir / "acme.py").write_text(tenant_text("acme"))
    answer: dict[str, Any] = {"is_ready": False, "tenants": {}}
    told = ControlSocket(settings.data_dir, {"plan": lambda _: answer})

    code, lines = plan()
    told.close()

    assert (1, 1, True) == (code, len(lines), "no worker has evaluated" in lines[0])
    assert KEY not in lines[0]
