"""The catalogue reads the tenants folder, and checks each file and all tenants together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import KEY
from tenantry.errors import Problem
from tenantry.settings import HostSettings
from tenantry.tenants.address import Address
from tenantry.tenants.catalogue import Catalogue, scan_tenants
from tenantry.tenants.file import read_content
from tenantry.tenants.loader import Loader
from tenantry.tenants.validation import DisabledTenant, RejectedTenant, validate_file

WriteTenant = Callable[..., Path]
Scan = Callable[[], Catalogue]


@pytest.fixture(name="scan")
def _scan(settings: HostSettings) -> Scan:
    """Return a function that reads the tenants folder."""
    return lambda: scan_tenants(settings)


def _served(catalogue: Catalogue) -> list[str]:
    return [tenant.name for tenant in catalogue.tenants]


def test_every_file_is_in_one_of_three(scan: Scan, write_tenant: WriteTenant) -> None:
    """Each tenant file is accepted, rejected or disabled."""
    write_tenant("globex")
    write_tenant("acme")
    write_tenant("broken", "BLUEPRINTS = [")
    write_tenant("asleep", ENABLED=False)

    catalogue = scan()

    assert (["acme", "globex"], ["broken"], ["asleep"]) == (
        _served(catalogue),
        [one.name for one in catalogue.rejected],
        [tenant.name for tenant in catalogue.disabled],
    )


@pytest.mark.parametrize("name", ["_acme.py", ".acme.py", "acme.txt", "acme.pyc", "acme", ".py"])
def test_other_files_are_not_tenants(
    scan: Scan, tenants_dir: Path, write_tenant: WriteTenant, name: str
) -> None:
    """Drafts, notes and editors' backup files in the tenants folder are ignored."""
    write_tenant("globex")
    (tenants_dir / name).write_text("(")

    catalogue = scan()

    assert (["globex"], []) == (_served(catalogue), catalogue.problems)


def test_a_disabled_tenant_is_as_if_it_were_not_there(
    scan: Scan, write_tenant: WriteTenant
) -> None:
    """Another tenant may use the URL prefix, secret key and database of a disabled tenant."""
    same = {"SECRET_KEY": KEY, "DATABASE_URI": "sqlite:///same.db", "URL_PREFIX": "/same"}
    write_tenant("acme", ENABLED=False, **same)
    write_tenant("globex", **same)

    catalogue = scan()

    assert (["globex"], []) == (_served(catalogue), catalogue.problems)


def test_a_disabled_tenant_is_never_rejected(scan: Scan, write_tenant: WriteTenant) -> None:
    """A tenant with `ENABLED = False` is disabled even if its file has problems."""
    globex = write_tenant(
        "globex", "ENABLED = False\nHOOK = print\nBLUEPRINTS = ['landin', 7]\nURL_PREFIX = '/g'\n"
    )

    (disabled,) = scan().disabled

    assert (DisabledTenant, "globex", str(globex), "/g", ("landin",)) == (
        type(disabled),
        disabled.name,
        disabled.file,
        disabled.prefix,
        disabled.endpoints,
    )
    assert ["HOOK", "SECRET_KEY", "BLUEPRINTS[1]", "BLUEPRINTS[0]"] == [
        problem.key for problem in disabled.problems
    ]


@pytest.mark.parametrize("value", [0, None, "False"])
def test_only_false_disables(scan: Scan, write_tenant: WriteTenant, value: object) -> None:
    """If `ENABLED` is neither `True` nor `False`, the tenant file is rejected."""
    write_tenant("acme", f"ENABLED = {value!r}\nSECRET_KEY = {KEY!r}\nBLUEPRINTS = ['landing']\n")

    assert ["ENABLED"] == [problem.key for problem in scan().problems]


def test_of_two_in_conflict_the_first_name_is_served(scan: Scan, write_tenant: WriteTenant) -> None:
    """Of two conflicting tenants, the first by name is served, whichever file is older."""
    globex = write_tenant("globex", URL_PREFIX="/same")
    write_tenant("acme", URL_PREFIX="/same")

    catalogue = scan()

    [problem] = catalogue.problems
    text = f"{globex}: 'URL_PREFIX': /same is also the prefix of tenant 'acme'; choose another."
    assert (["acme"], text) == (_served(catalogue), str(problem)[: len(text)])


def test_every_problem_of_a_file_is_reported_at_once(scan: Scan, write_tenant: WriteTenant) -> None:
    """All problems of a tenant file are reported together, each of them once."""
    text = "import os\nos.umask(0)\nSECRET_KEY = print\nRATE_LIMIT = 7\nURL_PREFIX = '/g'\n"
    write_tenant("globex", f"{text}BLUEPRINTS = ['landin']\n")

    (rejected,) = scan().rejected

    assert ("/g", ["SECRET_KEY", None, "RATE_LIMIT", "BLUEPRINTS[0]"]) == (
        rejected.prefix,
        [problem.key for problem in rejected.problems],
    )


@pytest.mark.parametrize(
    ("first", "second"), [("/same", "/sam"), ("/a/b", "/a/c"), ("/a/b", "/a-b"), ("/a/b", "/b/a")]
)
def test_prefixes_that_only_look_alike_do_not_conflict(
    scan: Scan, write_tenant: WriteTenant, first: str, second: str
) -> None:
    """Two URL prefixes conflict only if one contains the other by whole segments."""
    write_tenant("acme", URL_PREFIX=first)
    write_tenant("globex", URL_PREFIX=second)

    assert ["acme", "globex"] == _served(scan())


def test_a_conflict_shows_no_secret(scan: Scan, write_tenant: WriteTenant) -> None:
    """The error about two tenants with the same secret key does not show the key."""
    write_tenant("acme", SECRET_KEY=KEY)
    write_tenant("globex", SECRET_KEY=KEY)

    assert [False] == [KEY in str(problem) for problem in scan().problems]


def test_a_rejected_file_takes_nothing_from_others(scan: Scan, write_tenant: WriteTenant) -> None:
    """A rejected tenant file does not block its URL prefix, secret key or database."""
    same = {"SECRET_KEY": KEY, "DATABASE_URI": "sqlite:///same.db", "URL_PREFIX": "/same"}
    write_tenant("acme", BLUEPRINTS=["nowhere"], **same)
    write_tenant("globex", **same)

    assert ["globex"] == _served(scan())


def test_a_tenant_rejected_for_a_conflict_owns_nothing(
    scan: Scan, write_tenant: WriteTenant
) -> None:
    """A tenant that is rejected for one conflict does not block other tenants."""
    write_tenant("a", SECRET_KEY=KEY)
    write_tenant("b", SECRET_KEY=KEY, URL_PREFIX="/same")
    write_tenant("c", URL_PREFIX="/same")

    assert ["a", "c"] == _served(scan())


def test_every_conflict_of_a_file_is_reported_at_once(
    scan: Scan, write_tenant: WriteTenant
) -> None:
    """If a tenant conflicts in its secret key, database and URL prefix, all three are reported."""
    same = {"SECRET_KEY": KEY, "DATABASE_URI": "sqlite:///same.db", "URL_PREFIX": "/same"}
    write_tenant("acme", **same)
    write_tenant("globex", **same)

    assert ["SECRET_KEY", "DATABASE_URI", "URL_PREFIX"] == [one.key for one in scan().problems]


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("(", "/globex"),
        ("URL_PREFIX = '/else'", "/else"),
        ("URL_PREFIX = '/No'", "/globex"),
        ("URL_PREFIX = '/static'", "/globex"),
        ("URL_PREFIX = 7", "/globex"),
        ("URL_PREFIX = '/acme/shop'", None),
        ("URL_PREFIX = '/acme/shop/inner'", None),
        ("URL_PREFIX = '/acme'", None),
        ("URL_PREFIX = '/acmes'", "/acmes"),
    ],
)
def test_a_rejected_file_has_the_prefix_that_it_asked_for(
    scan: Scan, write_tenant: WriteTenant, text: str, prefix: str | None
) -> None:
    """A rejected tenant keeps its URL prefix, unless another tenant has that prefix."""
    write_tenant("acme", URL_PREFIX="/acme/shop")
    write_tenant("globex", text)

    assert [prefix] == [one.prefix for one in scan().rejected]


def test_a_misnamed_file_has_no_prefix(scan: Scan, tenants_dir: Path) -> None:
    """A tenant file with an invalid name has no URL prefix, and messages escape its name."""
    (tenants_dir / "A\nb.py").write_text("raise SystemExit")
    (tenants_dir / "secrets.py").write_text("raise SystemExit")

    assert [("A\\nb", None), ("secrets", None)] == [
        (one.name, one.prefix) for one in scan().rejected
    ]


def test_every_missing_endpoint_has_its_place(scan: Scan, write_tenant: WriteTenant) -> None:
    """Each unknown endpoint in `BLUEPRINTS` is a separate problem."""
    write_tenant("acme", BLUEPRINTS=["landin", "landing", "no.where", "", "../x", "a\0b", ".."])

    keys = [problem.key for problem in scan().problems]

    assert [f"BLUEPRINTS[{place}]" for place in (0, 2, 3, 4, 5, 6)] == keys


def test_an_error_of_tenantry_costs_one_tenant(write_tenant: WriteTenant, data_dir: Path) -> None:
    """If Tenantry fails to validate a tenant file, only that file is rejected."""
    path = write_tenant("acme")
    content = read_content(path)
    no_number: Any = None  # a time limit that is not a number causes a `TypeError` in Tenantry
    text = "cannot be validated (TypeError). This is an error in Tenantry; please report it."

    with Loader(timeout_s=no_number, data_dir=data_dir) as loader:
        rejected = validate_file(content, HostSettings(data_dir=data_dir), loader, no_number)

    problem = Problem(str(path), text)
    assert RejectedTenant("acme", Address("/acme"), (problem,), content.digest) == rejected
