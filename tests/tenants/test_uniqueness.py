"""What no two tenants may share: who has what, and what is said to who comes second."""

from pathlib import Path
from typing import Any

import pytest

from conftest import KEY
from tenantry.grammar import are_nested
from tenantry.tenants.model import Tenant, parse_tenant
from tenantry.tenants.uniqueness import AcceptedTenants

OTHER_KEY = KEY[::-1]


def _tenant(name: str, **keys: Any) -> Tenant:
    values = {"SECRET_KEY": f"{name}-{KEY}", "BLUEPRINTS": ["landing"]} | keys
    return parse_tenant(name, values, file=f"tenants/{name}.py", data_dir=Path("/data"))


CLASHES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"SECRET_KEY": KEY},
        {"SECRET_KEY": KEY},
        "'SECRET_KEY': is SECRET_KEY of tenant 'acme' too; give this tenant its own.",
    ),
    (
        {"SECRET_KEY": KEY},
        {"SECRET_KEY_FALLBACKS": [OTHER_KEY, KEY]},
        "'SECRET_KEY_FALLBACKS[1]': is SECRET_KEY of tenant 'acme' too: sessions that 'acme' signs",
    ),
    (
        {"SECRET_KEY_FALLBACKS": [OTHER_KEY, KEY]},
        {"SECRET_KEY": KEY},
        "'SECRET_KEY': is SECRET_KEY_FALLBACKS[1] of tenant 'acme' too: what this tenant signs now",
    ),
    (
        {"SECRET_KEY_FALLBACKS": [KEY]},
        {"SECRET_KEY_FALLBACKS": [KEY]},
        "'SECRET_KEY_FALLBACKS[0]': is SECRET_KEY_FALLBACKS[0] of tenant 'acme' too: one of the",
    ),
    (
        {"DATABASE_URI": "sqlite:///a.db"},
        {"DATABASE_URI": "sqlite:///./a.db"},
        "'DATABASE_URI': is the database of tenant 'acme' too; give this tenant its own.",
    ),
    (
        {"URL_PREFIX": "/same"},
        {"URL_PREFIX": "/same"},
        "'URL_PREFIX': /same is the prefix of tenant 'acme' too; choose another.",
    ),
    (
        {"URL_PREFIX": "/a"},
        {"URL_PREFIX": "/a/b"},
        "'URL_PREFIX': /a/b and /a of tenant 'acme' lie inside one another",
    ),
    (
        {"URL_PREFIX": "/a/b/c/d"},
        {"URL_PREFIX": "/a"},
        "'URL_PREFIX': /a and /a/b/c/d of tenant 'acme' lie inside one another",
    ),
]


@pytest.mark.parametrize(("has", "claims", "problem"), CLASHES)
def test_a_clash_names_both_sides(
    has: dict[str, Any], claims: dict[str, Any], problem: str
) -> None:
    """Its line has the key here, the key there and the other tenant's name; never the secret."""
    taken = AcceptedTenants()
    taken.add(_tenant("acme", **has))

    clashes = taken.conflicts(_tenant("globex", **claims))

    texts = [str(clash.problem).removeprefix("tenants/globex.py: ") for clash in clashes]
    assert [("acme", True, False)] == [
        (clash.owner, text.startswith(problem), KEY in text)
        for clash, text in zip(clashes, texts, strict=True)
    ]


def test_a_tenant_does_not_clash_with_itself() -> None:
    """Its next version may keep all that it has, its own key among its fallbacks included."""
    claims = AcceptedTenants()
    acme = _tenant("acme", SECRET_KEY=KEY, SECRET_KEY_FALLBACKS=[KEY, OTHER_KEY])
    claims.add(acme)

    assert [] == claims.conflicts(acme)


def test_what_was_dropped_is_free() -> None:
    """Nothing of a tenant that has gone is left, a key that it had twice included."""
    claims = AcceptedTenants()
    claims.add(_tenant("acme", SECRET_KEY_FALLBACKS=[f"acme-{KEY}"], URL_PREFIX="/a/b"))
    claims.remove("acme")
    claims.remove("acme")

    heir = _tenant("globex", SECRET_KEY=f"acme-{KEY}", URL_PREFIX="/a")

    assert ([], True, {}) == (claims.conflicts(heir), claims.is_free("/a"), claims._owners)


def test_a_database_is_free_although_its_link_was_turned(tmp_path: Path) -> None:
    """And what the link leads to now stays with its own tenant."""
    old, new, link = (tmp_path / name for name in ("old", "new", "link"))
    link.symlink_to(old)
    claims = AcceptedTenants()
    claims.add(_tenant("acme", DATABASE_URI=f"sqlite:///{link}"))
    claims.add(_tenant("globex", DATABASE_URI=f"sqlite:///{new}"))
    link.unlink()
    link.symlink_to(new)

    claims.remove("acme")

    owners = [
        [
            clash.owner
            for clash in claims.conflicts(_tenant("heir", DATABASE_URI=f"sqlite:///{path}"))
        ]
        for path in (old, new)
    ]
    assert [[], ["globex"]] == owners


def test_taking_again_gives_back_what_was_there_before() -> None:
    """A tenant that moves leaves its old prefix and key to others."""
    claims = AcceptedTenants()
    claims.add(_tenant("acme", SECRET_KEY=KEY))
    claims.add(_tenant("acme", SECRET_KEY=OTHER_KEY, URL_PREFIX="/else"))

    assert [] == claims.conflicts(_tenant("globex", SECRET_KEY=KEY, URL_PREFIX="/acme"))


def test_one_that_lies_above_several_clashes_with_each() -> None:
    """Else who displaces one of them would be accepted above the others."""
    claims = AcceptedTenants()
    for name in ("globex", "initech"):
        claims.add(_tenant(name, URL_PREFIX=f"/shop/{name}"))

    clashes = claims.conflicts(_tenant("acme", URL_PREFIX="/shop"))

    assert ["globex", "initech"] == [clash.owner for clash in clashes]


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
    """A prefix is inside another where a browser would send the other's cookies to it."""
    assert is_so == are_nested(one, other)
