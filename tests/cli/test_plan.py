"""`tenantry plan` compares the tenants folder with a snapshot."""

import json
import os
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


@pytest.mark.usefixtures("acme")
def test_a_snapshot_goes_to_standard_output(tenantry: Tenantry) -> None:
    """`tenantry plan --save -` prints the snapshot, and nothing else, on stdout."""
    result = tenantry("plan", "--save", "-")

    assert (0, ["acme"], "") == (result.code, [*json.loads(result.out)["tenants"]], result.err)


@pytest.mark.usefixtures("acme")
def test_a_snapshot_replaces_only_regular_files(tenantry: Tenantry, tmp_path: Path) -> None:
    """`tenantry plan --save` refuses to replace a pipe, a device or a link."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("pipe")

    results = [tenantry("plan", "--save", str(path)) for path in (pipe, link)]

    assert [(1, ""), (1, "")] == [(result.code, result.out) for result in results]
    assert (True, True) == (pipe.is_fifo(), link.is_symlink())
    assert "is not a regular file" in results[0].err
