"""`tenantry list` works without a running host."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Tenantry


def test_list_shows_every_tenant(tenantry: Tenantry, write_tenant: Callable[..., Path]) -> None:
    """If stdout is a pipe, `tenantry list` prints tab-separated lines, with a heading."""
    write_tenant("acme")
    write_tenant("broken", text="SECRET_KEY = ")
    write_tenant("closed", MAINTENANCE=True, URL_PREFIX="/c/d")
    write_tenant("off", ENABLED=False)

    result = tenantry("list")

    assert [
        "name\taddress\tstate\tendpoints\treason",
        "acme\t/acme\tnot running\tlanding\t",
        "broken\t/broken\tfailed\t\ttenants/broken.py:1: syntax error: invalid syntax; fix it.",
        "closed\t/c/d\tmaintenance\tlanding\t",
        "off\t/off\tdisabled\tlanding\t",
    ] == result.out.splitlines()


@pytest.mark.live
def test_operator_state_that_cannot_be_read_is_a_problem_of_one_tenant(
    tenantry: Tenantry, write_tenant: Callable[..., Path], data_dir: Path, tmp_path: Path
) -> None:
    """`tenantry list` shows a tenant with an unreadable operator state file as disabled."""
    for name in ("acme", "globex"):
        write_tenant(name)
    (data_dir / "acme").mkdir(parents=True, exist_ok=True)
    (data_dir / "acme/operator_state.json").write_text("{")
    snapshot = tmp_path / "snapshot.json"
    snapshot.write_text('{"salt": "s", "tenants": {}}')

    listed = tenantry("list")
    plan = tenantry("plan", "--against", str(snapshot))

    path = data_dir / "acme/operator_state.json"
    problem = (
        f"tenant 'acme' is disabled: {path}: cannot be read (JSONDecodeError); "
        "remove the file, then repeat the command (maintenance, disable)."
    )
    rows = [f"acme\t/acme\tdisabled\tlanding\t{problem}", "globex\t/globex\tnot running\tlanding\t"]
    assert (0, rows) == (listed.code, listed.out.splitlines()[1:])
    new = "+ globex: new at /globex, endpoints landing"
    assert (1, [new, f"! {problem}"]) == (plan.code, plan.out.splitlines())


@pytest.mark.usefixtures("acme")
def test_list_prints_json(tenantry: Tenantry) -> None:
    """`tenantry list --json` prints an object for each tenant."""
    row = {
        "name": "acme",
        "prefix": "/acme",
        "hosts": [],
        "state": "idle",
        "endpoints": ["landing"],
        "reason": "",
        "note": "",
    }

    assert [row] == json.loads(tenantry("list", "--json").out)
