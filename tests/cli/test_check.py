"""`tenantry check` reports problems of tenant files, endpoints and databases."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tenantry.app.trial_build
from commands import Result, Tenantry
from postgres import Postgres
from servers import free_port
from tenantry.cli.serve import start_report
from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import scan_tenants


@pytest.mark.live
@pytest.mark.usefixtures("acme")
def test_check_counts_valid_tenants(tenantry: Tenantry) -> None:
    """If no tenant has a problem, `tenantry check` prints the number of tenants."""
    assert Result(0, "1 tenant, 0 with problems.\n", "") == tenantry("check")


@pytest.mark.usefixtures("acme")
def test_check_names_every_problem(tenantry: Tenantry, write_tenant: Callable[..., Path]) -> None:
    """`tenantry check NAME…` prints each problem of the named tenants, and exits with 1."""
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
    "no folder": ("sqlite:///{folder}/nowhere/a.db", "the folder {folder}/nowhere for its file"),
    "no such file": ("sqlite:///{folder}/tenants/acme.py", "file is not a database"),
}


@pytest.fixture(name="words")
def _words(postgres_server: Postgres, tmp_path: Path) -> dict[str, str]:
    """Return the values of the placeholders in the tests' database URLs."""
    server = postgres_server.url("nowhere").replace("postgres@", "postgres:opensesame@")
    return {"server": server, "free": str(free_port()), "folder": str(tmp_path)}


@pytest.mark.live
@pytest.mark.parametrize("case", DATABASES)
def test_check_connects_to_databases(
    tenantry: Tenantry, write_tenant: Callable[..., Path], words: dict[str, str], case: str
) -> None:
    """`tenantry check` reports an unreachable database without showing the password."""
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
def test_check_finds_one_database_under_two_urls(
    tenantry: Tenantry, write_tenant: Callable[..., Path], postgres_url: str
) -> None:
    """`tenantry check` connects to databases, and finds two URLs that name the same database."""
    write_tenant("acme", DATABASE_URI=postgres_url)
    write_tenant("globex", DATABASE_URI=postgres_url.replace("127.0.0.1", "127.1"))

    result = tenantry("check")

    assert (
        "tenants/globex.py: 'DATABASE_URI': is also the database of tenant 'acme', which uses "
        "another name of the server; give each tenant its own database.\n"
    ) == result.out
    assert 1 == result.code


@pytest.mark.live
def test_check_builds(
    tenantry: Tenantry, write_tenant: Callable[..., Path], tmp_path: Path
) -> None:
    """`tenantry check` reports an endpoint that exists but cannot be imported."""
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


@pytest.fixture(name="_short_timeout")
def _fixture_short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit a trial build to one second."""
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
    """`tenantry check` and `serve` report each endpoint that exits or hangs, and then continue."""
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
        report = tenantry("check").out
    else:
        report = "\n".join(start_report(settings, scan_tenants(settings), "127.0.0.1:80"))

    end = "ends its process (exit code 0); fix the endpoint."
    wrong = [
        f"a.py: 'BLUEPRINTS[1]': endpoint 'extra.ending' {end}",
        "b.py: 'BLUEPRINTS[0]': endpoint 'extra.hanging' does not finish in 1 s;",
        "b.py: 'BLUEPRINTS[1]': endpoint 'extra.killing' ends its process (SIGKILL);",
        "c.py: 'BLUEPRINTS[1]': endpoint 'extra.needing' fails to register: KeyError: 'SHOP_ID'",
        f"e.py: 'BLUEPRINTS[0]': endpoint 'extra.ending' {end}",
    ]
    assert dict.fromkeys(wrong, 1) == {text: report.count(text) for text in wrong}
    assert len(wrong) == report.count(".py: ")


FAILS_ON_FIRST_REQUEST = """
from flask import Blueprint
failing_bp = Blueprint("failing", __name__)
@failing_bp.before_app_request
def connect():
    raise ValueError("no driver")
"""


@pytest.mark.live
@pytest.mark.usefixtures("data_dir")
def test_check_names_the_line_of_an_endpoint_that_fails_on_its_first_request(
    tenantry: Tenantry,
    write_tenant: Callable[..., Path],
    write_endpoint: Callable[[str, str], str],
) -> None:
    """If an endpoint fails on its first request, `tenantry check` prints the failing line."""
    write_tenant("acme", BLUEPRINTS=[write_endpoint("failing", FAILS_ON_FIRST_REQUEST)])

    request = "answers the host's first request, OPTIONS /, with 500"
    note = f"'BLUEPRINTS': {request}: ValueError: no driver (blueprint.py:6)."
    assert f"note: tenants/acme.py: {note}" == tenantry("check").out.splitlines()[0]


@pytest.mark.live
@pytest.mark.usefixtures("data_dir")
def test_check_finds_values_that_flask_rejects(
    tenantry: Tenantry, write_tenant: Callable[..., Path]
) -> None:
    """`tenantry check` reports a value that Flask rejects only when a request arrives."""
    write_tenant("acme", SERVER_NAME=7)

    assert "tenants/acme.py: cannot be built: " in tenantry("check").out


@pytest.mark.live
@pytest.mark.usefixtures("data_dir")
def test_check_skips_a_disabled_tenant_unless_it_is_named(
    tenantry: Tenantry, write_tenant: Callable[..., Path]
) -> None:
    """`tenantry check` skips a disabled tenant unless the command line names that tenant."""
    write_tenant("acme")
    write_tenant("globex", ENABLED=False, RATE_LIMIT="often")

    assert [0, 1] == [tenantry("check").code, tenantry("check", "globex").code]


def test_check_reports_each_problem_of_an_application(
    tenantry: Tenantry, write_tenant: Callable[..., Path], tmp_path: Path
) -> None:
    """`check` names the tenant file, the key, what was found, and what to do, on one line each."""
    (tmp_path / "shop.py").write_text(
        "import os\n"
        "from flask import Flask\n"
        "app = Flask(__name__)\n"
        "app.before_request(lambda: {}['x'])\n"
        "def die(): os._exit(4)\n"
    )
    for name, app in {"a": "shp:app", "b": "shop:ap", "c": "shop:die", "d": "shop:app"}.items():
        write_tenant(name, BLUEPRINTS=None, APP=app)
    write_tenant("e", BLUEPRINTS=None)
    clients = {"web": {"key": f"sha256:{'0' * 64}", "endpoints": ["shop"]}}
    write_tenant("f", BLUEPRINTS=None, APP="shop", CLIENTS=clients)

    lines = tenantry("check").out.splitlines()

    assert [
        (
            f"tenants/a.py: 'APP': no module named 'shp' in {tmp_path} or among the installed "
            "packages; correct the name, or set APP_DIR (for all tenants: TENANTRY_APP_DIR) to its "
            "folder."
        ),
        "tenants/b.py: 'APP': application 'shop:ap' has no 'ap'; write 'shop:app'.",
        (
            "tenants/c.py: 'APP': application 'shop:die' ends its process (exit code 4); fix the "
            "application."
        ),
        (
            "tenants/e.py: 'BLUEPRINTS': is missing, and so is 'APP'; write BLUEPRINTS = "
            "['landing'], or for an existing application: APP = 'shop:app'."
        ),
        "tenants/f.py: 'CLIENTS['web']['endpoints'][0]': 'shop' is not in 'BLUEPRINTS'; remove it.",
        (
            "note: tenants/d.py: 'APP': answers the host's first request, OPTIONS /, with 500: "
            "KeyError: 'x' (shop.py:4)."
        ),
    ] == [line for line in lines if "tenants/" in line and "chmod" not in line]


def test_a_problem_is_looked_up_in_the_app_dir_of_the_file(
    tenantry: Tenantry, write_tenant: Callable[..., Path], tmp_path: Path
) -> None:
    """If another key of the file is invalid, `check` still finds the application in `APP_DIR`."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project/shop.py").touch()
    write_tenant("acme", BLUEPRINTS=None, APP="shop", APP_DIR="project", ENABLED=7)

    lines = tenantry("check").out.splitlines()

    assert ["'ENABLED'"] == [line.split(": ")[1] for line in lines if "tenants/" in line]
