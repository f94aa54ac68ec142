"""`tenantry check` finds risks from other users of the machine and from environment variables."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Tenantry
from tenantry.endpoints.finding import code_paths, find_endpoint
from tenantry.errors import EndpointError
from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import scan_tenants
from tenantry.tenants.surroundings import (
    find_debug_switch,
    find_open_data,
    find_shared_variables,
    find_writers,
)

WriteTenant = Callable[..., Path]


@pytest.fixture(name="private")
def _private(tenants_dir: Path) -> Path:
    """Return a tenants folder that only its owner can change."""
    tenants_dir.chmod(0o755)
    return tenants_dir


@pytest.mark.parametrize("value", ["1", "true", "yes", "anything"])
def test_debugging_for_all_is_a_problem(value: str) -> None:
    """Every value of `FLASK_DEBUG` that turns on debugging is reported."""
    assert ["FLASK_DEBUG"] == [one.key for one in find_debug_switch({"FLASK_DEBUG": value})]


@pytest.mark.parametrize("environ", [{}, {"FLASK_DEBUG": "0"}, {"FLASK_DEBUG": "False"}])
def test_debugging_that_is_off_is_no_problem(environ: dict[str, str]) -> None:
    """Values of `FLASK_DEBUG` that turn debugging off are not reported."""
    assert [] == list(find_debug_switch(environ))


def test_variables_that_apps_can_read_are_noted() -> None:
    """`config.from_prefixed_env()` reads `FLASK_` variables, except those of Flask's commands."""
    names = ("FLASK_SECRET_KEY", "FLASK_TESTING", "FLASK_APP", "FLASK_RUN_PORT", "FLASK_DEBUG", "X")

    notes = find_shared_variables(dict.fromkeys(names, "1"))

    assert ["FLASK_SECRET_KEY", "FLASK_TESTING"] == [note.key for note in notes]


def test_flask_debug_does_not_turn_on_debugging(
    tenantry: Tenantry,
    write_tenant: WriteTenant,
    write_endpoint: Callable[[str, str], str],
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The apps ignore `FLASK_DEBUG`, which would show the code of all tenants to their clients."""
    del data_dir
    endpoint = write_endpoint(
        "shop",
        "from flask import Blueprint, current_app\n"
        "shop_bp = Blueprint('shop', __name__)\n"
        "@shop_bp.get('/')\n"
        "def debug(): return str(current_app.debug)\n",
    )
    write_tenant("acme", BLUEPRINTS=[endpoint])
    monkeypatch.setenv("FLASK_DEBUG", "1")

    assert tenantry("get", "/acme/").out.endswith("\n\nFalse")


def test_code_that_a_group_can_change_is_noted_once(
    settings: HostSettings,
    private: Path,
    write_tenant: WriteTenant,
    write_endpoint: Callable[[str, str], str],
) -> None:
    """If two tenants enable the same endpoint, each of its group-writable paths is noted once."""
    endpoint = write_endpoint("shop", "")
    blueprint = private.parent / "extra/shop/blueprint.py"
    for path in (private, private.parent, private.parent / "extra", blueprint.parent):
        path.chmod(0o755)
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=[endpoint]).chmod(0o644)
    blueprint.chmod(0o664)
    (private / "globex.py").chmod(0o620)

    found = list(find_writers(scan_tenants(settings).tenants, private))

    files = [(name, Path(note.file).name) for name, note in found]
    assert [("acme", "blueprint.py"), ("globex", "globex.py")] == files


def test_the_commands_of_the_notes_leave_no_note(
    settings: HostSettings, private: Path, write_tenant: WriteTenant
) -> None:
    """After an operator has run the command of each note, nothing is noted."""
    write_tenant("acme").chmod(0o664)
    private.parent.chmod(0o707)
    settings.data_dir.mkdir()
    settings.data_dir.chmod(0o770)
    tenants = scan_tenants(settings).tenants

    def notes() -> list[str]:
        found = [*find_writers(tenants, private), *find_open_data(tenants, settings.data_dir)]
        return [note.text for _, note in found]

    before = notes()
    for note in before:
        subprocess.run(["sh", "-c", note.partition("; run: ")[2]], check=True)

    assert (3, []) == (len(before), notes())


@pytest.mark.parametrize(
    "path",
    ["extra/shop/blueprint.py", "extra/shop/migrations/1.py", "extra/shop/migrations", "extra/shop",
     "extra/__init__.py", "extra", "."],
)  # fmt: skip
def test_an_endpoint_that_every_user_can_change_is_rejected(
    settings: HostSettings,
    write_tenant: WriteTenant,
    write_endpoint: Callable[[str, str], str],
    tmp_path: Path,
    path: str,
) -> None:
    """A tenant file is rejected if an endpoint's code or one of its folders is world-writable."""
    endpoint = write_endpoint("shop", "")
    (tmp_path / "extra/shop/migrations").mkdir()
    (tmp_path / "extra/shop/migrations/1.py").touch()
    write_tenant("acme", BLUEPRINTS=[endpoint])
    (tmp_path / path).chmod(0o777)

    problems = scan_tenants(settings).rejected[0].problems

    where = (tmp_path / path).resolve()
    text = f"every user can write to {where}; run: chmod o-w {where}"
    assert [("BLUEPRINTS[0]", f"endpoint 'extra.shop': {text}")] == [
        (one.key, one.text) for one in problems
    ]
    with pytest.raises(EndpointError, match="every user can write"):
        find_endpoint(endpoint, None)


def test_tenantrys_own_endpoints_have_no_code_of_others() -> None:
    """`tenantry check` does not report who can change Tenantry's own code."""
    assert [] == code_paths("landing", None)


def _mode(path: Path, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.parent.chmod(0o700)
    path.touch()
    path.chmod(mode)


def test_data_that_others_can_access_is_noted(
    settings: HostSettings, write_tenant: WriteTenant, tmp_path: Path
) -> None:
    """Folders, databases and secrets in the data folder that other users can access are noted."""
    write_tenant("acme")
    write_tenant("globex", DATABASE_URI=f"sqlite:///{tmp_path}/else/g.db")
    data = settings.data_dir
    _mode(data / "acme/acme.sqlite3", 0o644)
    _mode(data / "secrets/A", 0o640)
    _mode(data / "secrets/B", 0o600)
    _mode(data / ".workers/1.sock", 0o600)
    (data / ".workers").chmod(0o755)
    _mode(data / ".operator_state", 0o644)
    _mode(data / "initech/initech.sqlite3", 0o644)
    _mode(tmp_path / "else/g.db", 0o604)

    found = find_open_data(scan_tenants(settings).tenants, data)

    assert [
        ("", ".operator_state", "chmod -R go= "),
        ("", ".workers", "chmod -R go= "),
        ("acme", "acme", "chmod -R go= "),
        ("", "secrets", "chmod -R go= "),
        ("globex", "g.db", "chmod go= "),
    ] == [
        (name, Path(note.file).name, note.text.partition("run: ")[2].partition("/")[0])
        for name, note in found
    ]


def test_folders_that_every_user_can_replace_are_noted(
    settings: HostSettings, private: Path, write_tenant: WriteTenant
) -> None:
    """Folders above the tenants folder that every user can write to are noted."""
    write_tenant("acme").chmod(0o644)
    settings.data_dir.mkdir(mode=0o700)
    settings.data_dir.chmod(0o703)
    private.parent.chmod(0o707)
    tenants = scan_tenants(settings).tenants

    code, data = find_writers(tenants, private), find_open_data(tenants, settings.data_dir)

    text = "every user can replace what is in this folder, the tenants folder included; run: "
    text += f"chmod o-w {private.parent}"
    assert [("", text)] == [(name, note.text) for name, note in code]
    text = f"every user can replace the data in this folder; run: chmod go-w {settings.data_dir}"
    assert [text] == [note.text for _, note in data]


def test_private_data_is_not_noted(settings: HostSettings, write_tenant: WriteTenant) -> None:
    """A host creates only private files, so `tenantry check` prints no note about them."""
    write_tenant("acme")
    _mode(settings.data_dir / "acme/acme.sqlite3", 0o600)
    _mode(settings.data_dir / "secrets/A", 0o600)

    assert [] == list(find_open_data(scan_tenants(settings).tenants, settings.data_dir))


@pytest.mark.live
def test_check_shows_problems_of_the_environment_and_notes(
    tenantry: Tenantry,
    write_tenant: WriteTenant,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`tenantry check` exits with 1 for `FLASK_DEBUG` or a bad cookie name, but not for notes."""
    write_tenant("acme", SESSION_COOKIE_NAME="__Host-session").chmod(0o664)
    _mode(data_dir / "secrets/A", 0o644)
    monkeypatch.setenv("FLASK_DEBUG", "1")
    monkeypatch.setenv("FLASK_X", "1")

    both = tenantry("check")
    write_tenant("acme").chmod(0o664)
    monkeypatch.delenv("FLASK_DEBUG")
    only_notes = tenantry("check")

    starts = [line.split(": ")[:2] for line in both.out.splitlines()]
    assert (1, 0) == (both.code, only_notes.code)
    assert [
        ["environment", "'FLASK_DEBUG'"],
        ["tenants/acme.py", "'SESSION_COOKIE_NAME'"],
        ["note", "environment"],
        ["note", "instance/secrets"],
        ["note", "tenants/acme.py"],
    ] == starts
