"""`tenantry new` writes a tenant file and a secret, and overwrites nothing."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Tenantry


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
