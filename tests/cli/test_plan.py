"""`tenantry plan` compares the tenants folder with a snapshot."""

from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Tenantry
from tenantry.tenants.clients import hash_client_key


@pytest.mark.live
def test_plan_shows_that_a_client_key_changed(
    tenantry: Tenantry, write_tenant: Callable[..., Path], tmp_path: Path
) -> None:
    """`tenantry plan` shows a changed client key as a fingerprint, and never the key itself."""
    lines = []
    for key in ("one", "two"):
        write_tenant("acme", CLIENTS={"web": hash_client_key(key)})
        saved = str(tmp_path / "before.json")
        words = ("--save", saved) if key == "one" else ("--against", saved)
        lines.append(tenantry("plan", *words).out)

    assert "~ acme: CLIENTS: {'web': {'key': '********'}} (#" in lines[1]
    assert hash_client_key("two")[7:20] not in lines[1]
