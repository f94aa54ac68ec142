"""`tenantry new` writes a tenant file and a secret, and overwrites nothing."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from capsule_files import tree
from commands import Tenantry
from tenantry.errors import TenantryError


def test_new_writes_a_tenant_that_serves(
    tenantry: Tenantry, tenants_dir: Path, data_dir: Path
) -> None:
    """`tenantry new` writes a tenant file and a secret with mode 0600, and the tenant works."""
    made = tenantry("new", "acme-shop", "--prefix", "/clients/acme")
    answer = tenantry("get", "/clients/acme/")

    key = data_dir / "secrets/ACME_SHOP_SECRET_KEY"
    assert (0, 0) == (made.code, answer.code)
    assert 0o600 == stat.S_IMODE(key.stat().st_mode)
    assert key.read_text().strip() not in (tenants_dir / "acme-shop.py").read_text() + made.out


def test_new_never_overwrites(tenantry: Tenantry, tenants_dir: Path, data_dir: Path) -> None:
    """`tenantry new` exits with 1 if the tenant file or the secret exists, and changes neither."""
    tenantry("new", "acme")
    before = (tenants_dir / "acme.py").read_bytes()
    again = tenantry("new", "acme")
    (tenants_dir / "acme.py").unlink()
    secret_there = tenantry("new", "acme")

    assert [1, 1] == [again.code, secret_there.code]
    assert (before, False) == (before, (tenants_dir / "acme.py").exists())
    assert (data_dir / "secrets/ACME_SECRET_KEY").exists()


def test_new_makes_no_secret_that_would_not_be_used(
    tenantry: Tenantry, tenants_dir: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the secret is already set elsewhere, `tenantry new` exits with 1 and creates nothing."""
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
def test_new_rejects_a_prefix_that_another_tenant_has(
    tenantry: Tenantry,
    write_tenant: Callable[..., Path],
    data_dir: Path,
    words: tuple[str, ...],
) -> None:
    """`tenantry new` rejects a URL prefix that equals, contains or is inside another tenant's."""
    write_tenant("acme", URL_PREFIX="/clients/acme")
    write_tenant("broken", text="SECRET_KEY = (")

    result = tenantry("new", *words)

    assert (1, 1, False) == (result.code, len(result.err.splitlines()), data_dir.exists())


def test_new_accepts_the_prefix_of_a_disabled_tenant(
    tenantry: Tenantry, write_tenant: Callable[..., Path]
) -> None:
    """`tenantry new` accepts the URL prefix of a disabled tenant, because that prefix is free."""
    write_tenant("acme", URL_PREFIX="/clients/acme", ENABLED=False)
    write_tenant("globex", URL_PREFIX="/clients/acme-2")

    assert 0 == tenantry("new", "shop", "--prefix", "/clients/acme").code


def test_new_leaves_no_secret_if_it_cannot_write_the_file(
    tenantry: Tenantry, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the tenant file cannot be written, `tenantry new` leaves no secret behind."""

    def fail(*_: object) -> None:
        raise TenantryError("no room.")

    monkeypatch.setattr("tenantry.tenants.new_file.write_tenant_file", fail)

    result = tenantry("new", "acme")

    assert (1, "tenantry: no room.\n") == (result.code, result.err)
    assert [] == list((data_dir / "secrets").iterdir())


def test_new_refuses_the_secret_of_another_tenant(
    tenantry: Tenantry, tenants_dir: Path, data_dir: Path
) -> None:
    """`tenantry new` suggests no command that would remove a secret of another tenant."""
    tenantry("new", "a-b")

    result = tenantry("new", "a_b")

    assert 1 == result.code
    assert result.err.endswith("is a secret of tenant 'a-b'; choose another name.\n")
    assert not (tenants_dir / "a_b.py").exists()
    assert (data_dir / "secrets/A_B_SECRET_KEY").exists()


def test_new_refuses_the_name_of_data_without_a_tenant(
    tenantry: Tenantry, tenants_dir: Path, data_dir: Path
) -> None:
    """`tenantry new` does not give a new tenant the data of a former tenant."""
    tenantry("new", "acme")
    (data_dir / "acme").mkdir()
    (data_dir / "acme/old.txt").write_text("old")
    (tenants_dir / "acme.py").unlink()

    again = tenantry("new", "acme")
    removed = tenantry("remove", "acme")
    made = tenantry("new", "acme")

    assert (1, True) == (again.code, "data without a tenant" in again.err), again
    assert "tenantry remove acme" in again.err
    assert (0, 0) == (removed.code, made.code), (removed, made)
    [aside] = (data_dir / ".removed").iterdir()
    assert {"data/old.txt", "ACME_SECRET_KEY"} == set(tree(aside))


@pytest.mark.parametrize("words", [("list",), ("check",), ("plan", "--save", "x"), ("new", "zeta")])
def test_data_without_a_tenant_is_reported(  # noqa: PLR0917 - pytest fixtures are parameters
    tenantry: Tenantry,
    write_tenant: Callable[..., Path],
    data_dir: Path,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`list`, `check`, `plan` and `new` report data without a tenant, and exit with 0."""
    monkeypatch.chdir(tmp_path)
    write_tenant("globex")
    for name in ("globex", "former", "empty", ".hidden"):
        (data_dir / name).mkdir(parents=True)
    for name in ("globex", "former"):
        (data_dir / name / "a").write_text("a")

    result = tenantry(*words)

    lines = [line for line in (result.out + result.err).splitlines() if "without a tenant" in line]
    assert (0, 1) == (result.code, len(lines)), result
    assert "former" in lines[0]


def test_secret_new_never_overwrites(tenantry: Tenantry, data_dir: Path) -> None:
    """`secret new` writes a new secret with mode 0600 once, and does not print the secret."""
    made = tenantry("secret", "new", "ACME_SECRET_KEY_2")
    path = data_dir / "secrets/ACME_SECRET_KEY_2"
    value = path.read_text()
    again = tenantry("secret", "new", "ACME_SECRET_KEY_2")
    wrong = tenantry("secret", "new", "../x")

    assert [0, 1, 2] == [made.code, again.code, wrong.code]
    assert (0o600, 64) == (stat.S_IMODE(path.stat().st_mode), len(value.strip()))
    assert value == path.read_text()
    assert value.strip() not in made.out
