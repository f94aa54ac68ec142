"""Two tenants cannot share a secret key, a database or a URL prefix."""

from pathlib import Path
from typing import Any

import pytest

from conftest import KEY
from tenantry.grammar import are_nested
from tenantry.tenants.address import Address
from tenantry.tenants.model import Tenant
from tenantry.tenants.uniqueness import AcceptedTenants
from tenantry.tenants.validation import parse_tenant

OTHER_KEY = KEY[::-1]


def _tenant(name: str, **keys: Any) -> Tenant:
    values = {"SECRET_KEY": f"{name}-{KEY}", "BLUEPRINTS": ["landing"]} | keys
    return parse_tenant(name, values, file=f"tenants/{name}.py", data_dir=Path("/data"))


CONFLICTS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"SECRET_KEY": KEY},
        {"SECRET_KEY": KEY},
        "'SECRET_KEY': is also 'SECRET_KEY' of tenant 'acme'; give this tenant its own.",
    ),
    (
        {"SECRET_KEY": KEY},
        {"SECRET_KEY_FALLBACKS": [OTHER_KEY, KEY]},
        "'SECRET_KEY_FALLBACKS[1]': is also 'SECRET_KEY' of tenant 'acme', so sessions of",
    ),
    (
        {"SECRET_KEY_FALLBACKS": [OTHER_KEY, KEY]},
        {"SECRET_KEY": KEY},
        "'SECRET_KEY': is also 'SECRET_KEY_FALLBACKS[1]' of tenant 'acme', so ses",
    ),
    (
        {"SECRET_KEY_FALLBACKS": [KEY]},
        {"SECRET_KEY_FALLBACKS": [KEY]},
        "'SECRET_KEY_FALLBACKS[0]': is also 'SECRET_KEY_FALLBACKS[0]' of tenant 'acme'; re",
    ),
    (
        {"DATABASE_URI": "sqlite:///a.db"},
        {"DATABASE_URI": "sqlite:///./a.db"},
        "'DATABASE_URI': is also the database of tenant 'acme'; give this tenant its own.",
    ),
    (
        {"URL_PREFIX": "/same"},
        {"URL_PREFIX": "/same"},
        "'URL_PREFIX': /same is also the prefix of tenant 'acme'; choose another.",
    ),
    (
        {"URL_PREFIX": "/a"},
        {"URL_PREFIX": "/a/b"},
        "'URL_PREFIX': /a/b is inside /a of tenant 'acme', so browsers would",
    ),
    (
        {"URL_PREFIX": "/a/b/c/d"},
        {"URL_PREFIX": "/a"},
        "'URL_PREFIX': /a contains /a/b/c/d of tenant 'acme', so browsers",
    ),
]


@pytest.mark.parametrize(("has", "claims", "problem"), CONFLICTS)
def test_a_conflict_names_both_sides(
    has: dict[str, Any], claims: dict[str, Any], problem: str
) -> None:
    """The error for two conflicting tenants names the other tenant, but shows no secret."""
    accepted = AcceptedTenants()
    accepted.add(_tenant("acme", **has))

    conflicts = accepted.conflicts(_tenant("globex", **claims))

    texts = [str(conflict.problem).removeprefix("tenants/globex.py: ") for conflict in conflicts]
    assert [("acme", True, False)] == [
        (conflict.owner, text.startswith(problem), KEY in text)
        for conflict, text in zip(conflicts, texts, strict=True)
    ]


def test_a_tenant_does_not_conflict_with_itself() -> None:
    """A new version of a tenant does not conflict with the old version of the same tenant."""
    accepted = AcceptedTenants()
    acme = _tenant("acme", SECRET_KEY=KEY, SECRET_KEY_FALLBACKS=[KEY, OTHER_KEY])
    accepted.add(acme)

    assert [] == accepted.conflicts(acme)


def test_what_a_removed_tenant_had_is_free() -> None:
    """The URL prefix, secret key and database of a removed tenant are free for other tenants."""
    accepted = AcceptedTenants()
    accepted.add(_tenant("acme", SECRET_KEY_FALLBACKS=[f"acme-{KEY}"], URL_PREFIX="/a/b"))
    accepted.remove("acme")
    accepted.remove("acme")

    heir = _tenant("globex", SECRET_KEY=f"acme-{KEY}", URL_PREFIX="/a")

    free = accepted.free_part("globex", Address("/a"))
    assert ([], Address("/a"), {}) == (accepted.conflicts(heir), free, accepted._owners)


def test_a_database_is_free_although_its_link_has_changed(tmp_path: Path) -> None:
    """If a link to a database file changes, the file still belongs to its tenant."""
    old, new, link = (tmp_path / name for name in ("old", "new", "link"))
    link.symlink_to(old)
    accepted = AcceptedTenants()
    accepted.add(_tenant("acme", DATABASE_URI=f"sqlite:///{link}"))
    accepted.add(_tenant("globex", DATABASE_URI=f"sqlite:///{new}"))
    link.unlink()
    link.symlink_to(new)

    accepted.remove("acme")

    owners = [
        [
            conflict.owner
            for conflict in accepted.conflicts(_tenant("heir", DATABASE_URI=f"sqlite:///{path}"))
        ]
        for path in (old, new)
    ]
    assert [[], ["globex"]] == owners


def test_a_new_version_frees_what_the_old_one_had() -> None:
    """If a tenant changes its URL prefix and secret key, other tenants may use the old values."""
    accepted = AcceptedTenants()
    accepted.add(_tenant("acme", SECRET_KEY=KEY))
    accepted.add(_tenant("acme", SECRET_KEY=OTHER_KEY, URL_PREFIX="/else"))

    assert [] == accepted.conflicts(_tenant("globex", SECRET_KEY=KEY, URL_PREFIX="/acme"))


def test_a_prefix_above_several_conflicts_with_each() -> None:
    """A URL prefix that contains the prefixes of several tenants conflicts with each of them."""
    accepted = AcceptedTenants()
    for name in ("globex", "initech"):
        accepted.add(_tenant(name, URL_PREFIX=f"/shop/{name}"))

    conflicts = accepted.conflicts(_tenant("acme", URL_PREFIX="/shop"))

    assert ["globex", "initech"] == [conflict.owner for conflict in conflicts]


@pytest.mark.parametrize(
    ("one", "other", "is_so"),
    [
        ("/a", "/a", True),
        ("/a/b", "/a", True),
        ("/a", "/a/b/c", True),
        ("/a", "/ab", False),
        ("/a/b", "/a/c", False),
        ("/a/b", "/a-b", False),
        ("/a/b", "/b/a", False),
    ],
)
def test_prefixes_are_nested_by_whole_segments(one: str, other: str, is_so: bool) -> None:
    """The URL prefix `/a/b` is inside `/a`, but `/ab` is not, as for cookie paths."""
    assert is_so == are_nested(one, other)
