"""`tenantry key` creates a client key and prints it once."""

import ast
import json
from pathlib import Path

import pytest

from commands import Tenantry
from tenantry.tenants.clients import hash_client_key, parse_clients


def test_key_prints_a_key_once_and_its_line(tenantry: Tenantry, acme: Path) -> None:
    """`tenantry key` prints a new client key, and the line to add to `CLIENTS`."""
    before = acme.read_text()
    result = tenantry("key", "acme", "mobile")
    _, key, _, where, line = result.out.splitlines()

    assert (0, f'    "mobile": "{hash_client_key(key)}",') == (result.code, line)
    assert ("tenants/acme.py" in where, before) == (True, acme.read_text())
    clients = parse_clients(ast.literal_eval(f"{{{line.strip()}}}"), "acme", None)
    assert clients is not None
    assert ["mobile"] == [client.name for client in clients.all]


def test_key_prints_json(tenantry: Tenantry, acme: Path) -> None:
    """`tenantry key --json` prints the key and the line for `CLIENTS`."""
    del acme
    made = json.loads(tenantry("key", "acme", "mobile", "--json").out)

    assert (f'"mobile": "{hash_client_key(made["key"])}",', "mobile") == (
        made["line"],
        made["client"],
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ("globex", "mobile"),
            "tenantry: no tenant named 'globex'; 1 tenant exists; see: ",
        ),
        (("acme", "a b"), "'a b': expected 1 to 64 characters"),
        (("acme",), "Missing argument 'CLIENT'"),
    ],
)
def test_key_refuses_an_unknown_tenant_and_a_bad_name(
    tenantry: Tenantry, acme: Path, words: tuple[str, ...], text: str
) -> None:
    """For an unknown tenant or a bad client name, `tenantry key` exits with 2 and prints no key."""
    del acme
    result = tenantry("key", *words)

    assert (2, "", True) == (result.code, result.out, text in result.err)
