"""The documentation agrees with the code."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from click import Group
from packaging.requirements import Requirement

from log_lines import CollectedLines
from request_records import request_record
from tenantry.capsules.influences import INFLUENCES
from tenantry.cli import tenantry
from tenantry.cli.usage import COLUMNS
from tenantry.grammar import RESERVED_SEGMENTS, RESERVED_TENANT_NAMES
from tenantry.observability.access_log import AccessLog
from tenantry.planned import PLANNED_KEYS
from tenantry.settings import HostSettings, environment_variable
from tenantry.tenants.model import Tenant

ROOT = Path(__file__).parent.parent
README = ROOT.joinpath("README.md").read_text(encoding="utf-8")
CONFIG_README = ROOT.joinpath("config/README.md").read_text(encoding="utf-8")
TENANTS_README = ROOT.joinpath("tenants/README.md").read_text(encoding="utf-8")


def _key_rows() -> list[str]:
    rows = []
    for field in Tenant.model_fields.values():
        if field.alias:
            extra = field.json_schema_extra
            documented = extra.get("default") if isinstance(extra, dict) else None
            default = documented or f"`{field.default!r}`"
            rows.append(f"| `{field.alias}` | {default} | {field.description} |")
    return rows


def _setting_rows() -> list[str]:
    return [
        f"| `{environment_variable(name)}` | {_shown_default(field.default)} "
        f"| {field.description} |"
        for name, field in HostSettings.model_fields.items()
    ]


def _shown_default(default: object) -> str:
    if default in (None, ()):
        return "unset"
    return f"`{','.join(default) if isinstance(default, tuple) else default}`"


def _rows_under(heading: str, document: str = README) -> list[str]:
    table = document.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return table.splitlines()[2:]


def test_the_table_of_keys_is_the_code() -> None:
    """`tenants/README.md` documents each key, with the same default and meaning as the code."""
    assert _key_rows() == _rows_under("key", TENANTS_README)


@pytest.mark.parametrize("key", PLANNED_KEYS)
def test_every_planned_key_is_documented(key: str) -> None:
    """`tenants/README.md` names every key that is planned for a later version."""
    assert f"`{key}`" in TENANTS_README


def test_the_table_of_a_capsules_influences_is_the_code() -> None:
    """`tenants/README.md` lists everything that a capsule can influence, as the code does."""
    rows = [f"| {influence.part} | {influence.effect} |" for influence in INFLUENCES]

    assert rows == _rows_under("part of a capsule", TENANTS_README)


def test_the_table_of_settings_is_the_code() -> None:
    """`config/README.md` documents each setting, with the same default and meaning as the code."""
    assert _setting_rows() == _rows_under("setting", CONFIG_README)


def test_every_usage_column_and_log_fact_is_documented() -> None:
    """`config/README.md` names each column of `tenantry usage` and each field of the access log."""
    lines: list[str] = []
    AccessLog("json", CollectedLines(lines))(request_record())

    assert [] == [column for column in COLUMNS[1:] if f"`{column}`" not in CONFIG_README]
    assert [] == [fact for fact in json.loads(lines[0]) if f'"{fact}": ' not in CONFIG_README]


def test_every_command_is_documented() -> None:
    """The README's table of commands has exactly the commands that exist."""
    documented = {row.split("`")[1].split()[0] for row in _rows_under("command")}

    assert isinstance(tenantry, Group)
    assert set(tenantry.list_commands(None)) == documented  # type: ignore[arg-type]


@pytest.mark.parametrize("segment", sorted(RESERVED_SEGMENTS))
def test_every_reserved_prefix_is_documented(segment: str) -> None:
    """`tenants/README.md` names each URL prefix that Tenantry reserves."""
    assert f"`/{segment}`" in TENANTS_README


@pytest.mark.parametrize("name", sorted(RESERVED_TENANT_NAMES))
def test_every_reserved_name_is_documented(name: str) -> None:
    """`tenants/README.md` names each tenant name that Tenantry reserves."""
    assert f"`{name}`" in TENANTS_README


def test_every_locked_version_has_hashes() -> None:
    """Each line of `config/locked.txt` that names a version is followed by a hash of a file."""
    text = ROOT.joinpath("config/locked.txt").read_text(encoding="utf-8")

    versions = re.findall(r"^\S+==\S+", text, re.MULTILINE)
    hashed = re.findall(r"^\S+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)

    assert len(versions) == len(hashed) > 40


def test_every_dependency_is_locked_at_a_version_that_is_allowed() -> None:
    """Each dependency has a locked version that `pyproject.toml` allows."""
    project = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *optional["postgres"], *optional["redis"]]
    text = ROOT.joinpath("config/locked.txt").read_text(encoding="utf-8")
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))

    refused = [
        one.name
        for one in map(Requirement, wanted)
        if not one.specifier.contains(locked.get(one.name, "0"))
    ]

    assert [] == refused
