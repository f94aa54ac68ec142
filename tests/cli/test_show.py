"""`tenantry show` prints a tenant's effective configuration without secrets."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Tenantry
from conftest import KEY
from tenantry.observability.redaction import MASK
from tenantry.tenants.clients import hash_client_key


@pytest.mark.usefixtures("acme")
def test_show_masks_secrets(tenantry: Tenantry) -> None:
    """`tenantry show` prints every key of a tenant with its effective value, and masks secrets."""
    shown = json.loads(tenantry("show", "acme", "--json").out)

    assert ("Acme Ltd", "/acme") == (shown["APP_NAME"], shown["URL_PREFIX"])
    assert (30.0, "report") == (shown["DEADLINE_S"], shown["DEADLINE_ACTION"])
    assert [MASK, MASK] == [shown["SECRET_KEY"], shown["MAIL_PASSWORD"]]
    assert KEY not in json.dumps(shown)


def test_show_masks_client_keys(tenantry: Tenantry, write_tenant: Callable[..., Path]) -> None:
    """`tenantry show` prints the names and limits of clients, but masks their key hashes."""
    entry = {"key": hash_client_key("guessable"), "methods": ["GET"], "expires": "2027-01-31"}
    oidc = {"issuer": "https://login.test", "audience": "acme"}
    write_tenant("acme", CLIENTS={"web": hash_client_key("password"), "app": entry}, OIDC=oidc)

    shown = json.loads(tenantry("show", "acme", "--json").out)

    app = {"key": MASK, "methods": ["GET"], "expires": "2027-01-31T23:59:59.999999+00:00"}
    assert {"web": {"key": MASK}, "app": app} == shown["CLIENTS"]
    assert oidc | {"audience": ["acme"]} == shown["OIDC"]


def test_show_masks_what_secret_returned(
    tenantry: Tenantry, write_tenant: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tenantry show` masks a value from `secret()`, whatever the key's name."""
    monkeypatch.setenv("ACME_OTHER", "hunter2-hunter2")
    text = "from tenantry import secret\nLOOKS_HARMLESS = [b'x' + secret('ACME_OTHER').encode()]\n"
    path = write_tenant("acme")
    path.write_text(text + path.read_text())

    result = tenantry("show", "acme", "--json")

    assert (0, [f"x{MASK}"]) == (result.code, json.loads(result.out)["LOOKS_HARMLESS"])


def test_show_masks_the_password_of_a_database(
    tenantry: Tenantry, write_tenant: Callable[..., Path]
) -> None:
    """`tenantry show` prints the database URL without the password."""
    write_tenant("acme", DATABASE_URI="sqlite://user:hunter2@/x.db")

    assert "hunter2" not in tenantry("show", "acme").out


def test_show_of_a_rejected_tenant_is_its_problems(
    tenantry: Tenantry, write_tenant: Callable[..., Path]
) -> None:
    """For a rejected tenant, `tenantry show` prints the problems on stderr and exits with 1."""
    write_tenant("acme", SECRET_KEY="short", BLUEPRINTS=[])

    result = tenantry("show", "acme")

    assert (1, "", 2) == (result.code, result.out, len(result.err.splitlines()))
