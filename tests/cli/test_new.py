"""`tenantry new` writes a tenant file and the tenant's secret, and overwrites nothing."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Tenantry


def test_new_writes_a_tenant_that_serves(
    tenantry: Tenantry, tenants_dir: Path, data_dir: Path
) -> None:
    """`new` writes a tenant file and a secret (mode 0600), and the new tenant answers."""
    made = tenantry("new", "acme-shop", "--prefix", "/clients/acme")
    answer = tenantry("get", "/clients/acme/")

    key = data_dir / "secrets/ACME_SHOP_SECRET_KEY"
    assert (0, 0) == (made.code, answer.code)
    assert 0o600 == stat.S_IMODE(key.stat().st_mode)
    assert key.read_text().strip() not in (tenants_dir / "acme-shop.py").read_text() + made.out


def test_new_never_overwrites(tenantry: Tenantry, tenants_dir: Path, data_dir: Path) -> None:
    """`new` does not change an existing tenant file or secret, and exits with 1."""
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
    """If the secret is set elsewhere, `secret` would not return the fresh one: exit code 1."""
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
    """`new` rejects a prefix that equals, contains or lies inside any tenant file's prefix."""
    write_tenant("acme", URL_PREFIX="/clients/acme")
    write_tenant("broken", text="SECRET_KEY = (")

    result = tenantry("new", *words)

    assert (1, 1, False) == (result.code, len(result.err.splitlines()), data_dir.exists())


def test_new_accepts_the_prefix_of_a_disabled_tenant(
    tenantry: Tenantry, write_tenant: Callable[..., Path]
) -> None:
    """A disabled tenant has no prefix, and prefixes are compared by whole segments."""
    write_tenant("acme", URL_PREFIX="/clients/acme", ENABLED=False)
    write_tenant("globex", URL_PREFIX="/clients/acme-2")

    assert 0 == tenantry("new", "shop", "--prefix", "/clients/acme").code
