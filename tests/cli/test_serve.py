"""`tenantry serve` prints a report and checks the listeners before gunicorn starts."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Tenantry
from servers import free_port
from tenantry.cli.serve import start_report
from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import scan_tenants


@pytest.mark.usefixtures("acme", "data_dir")
def test_the_start_report_names_tenants_and_problems(
    settings: HostSettings, write_tenant: Callable[..., Path]
) -> None:
    """`tenantry serve` reports the URL of each tenant, and why it rejects a tenant file."""
    write_tenant("broken", text="1 +")

    lines = start_report(settings, scan_tenants(settings), "127.0.0.1:80")

    assert f"1 tenant from {settings.tenants_dir}:" == lines[0]
    assert "  acme  http://127.0.0.1:80/acme/" in lines
    assert 1 == len([line for line in lines if "broken.py:1: syntax error" in line])


def test_serve_rejects_an_unknown_tenant(
    tenantry: Tenantry, monkeypatch: pytest.MonkeyPatch, write_tenant: Callable[..., Path]
) -> None:
    """If `--only` names an unknown tenant, `tenantry serve` lists all tenants and exits with 2."""
    monkeypatch.setenv("TENANTRY_ONLY", "")
    write_tenant("acme")

    result = tenantry("serve", "--only", "acne")

    text = (
        "tenantry: no tenant named 'acne'; did you mean 'acme'? 1 tenant exists; "
        "see: tenantry list.\n"
    )
    assert (2, "", text) == (result.code, result.out, result.err)


@pytest.mark.parametrize(
    ("bind", "reason"),
    [
        ("unix:nowhere/t.sock", "there is no folder nowhere"),
        ("unix:tenants", "the path exists and is not a socket"),
        (f"unix:{'t' * 108}", "its path is longer than 107 bytes"),
        ("unix:taken.sock", "another server listens there"),
        ("127.0.0.1:{taken}", "Address already in use"),
        ("192.0.2.1:80", "Cannot assign requested address"),
    ],
)
@pytest.mark.usefixtures("acme")
def test_serve_names_the_listener_that_cannot_be_opened(
    tenantry: Tenantry, tmp_path: Path, bind: str, reason: str
) -> None:
    """If `tenantry serve` cannot open a listener, the error names the option and the address."""
    with socket.socket() as taken, socket.socket(socket.AF_UNIX) as taken_path:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        taken_path.bind(os.path.relpath(tmp_path / "taken.sock"))
        taken_path.listen()
        bind = bind.format(taken=taken.getsockname()[1])

        result = tenantry("serve", "--bind", bind)

    text = f"tenantry: --bind: cannot listen on {bind}: {reason}; choose another address.\n"
    assert (1, "", text) == (result.code, result.out, result.err)


@pytest.mark.usefixtures("acme")
def test_serve_names_the_variable_of_a_listener(
    tenantry: Tenantry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error about the operators' listener names the variable `TENANTRY_ADMIN_BIND`."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("TENANTRY_ADMIN_BIND", f"127.0.0.1:{taken.getsockname()[1]}")

        result = tenantry("serve", "--bind", f"127.0.0.1:{free_port()}")

    assert (1, True) == (
        result.code,
        result.err.startswith("tenantry: TENANTRY_ADMIN_BIND: cannot listen on 127.0.0.1:"),
    )
