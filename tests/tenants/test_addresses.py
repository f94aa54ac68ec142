"""Host names of tenants are validated and normalized, and each address has one owner."""

from pathlib import Path
from typing import Any

import pytest

from conftest import KEY
from tenantry.errors import TenantFileError
from tenantry.settings import HostSettings
from tenantry.tenants.address import Address
from tenantry.tenants.loader import LoadedFile
from tenantry.tenants.model import Tenant
from tenantry.tenants.uniqueness import AcceptedTenants
from tenantry.tenants.validation import parse_tenant, validate_loaded


def tenant(name: str = "acme", pattern: str | None = None, **keys: Any) -> Tenant:
    """Return a tenant with the given keys."""
    values = {"SECRET_KEY": f"{name}-{KEY}", "BLUEPRINTS": ["landing"]} | keys
    return parse_tenant(name, values, file=f"{name}.py", data_dir=Path("/d"), host_pattern=pattern)


def problems(**keys: Any) -> list[str]:
    """Return the problems of a tenant with the given keys."""
    with pytest.raises(TenantFileError) as caught:
        tenant(**keys)
    return [str(problem) for problem in caught.value.problems]


def conflicts(first: Tenant, second: Tenant) -> list[str]:
    """Return the conflicts of the second tenant with the first tenant."""
    accepted = AcceptedTenants()
    accepted.add(first)
    return [str(conflict.problem) for conflict in accepted.conflicts(second)]


@pytest.mark.parametrize(
    ("name", "normalized"),
    [
        ("Shop.Example.ORG.", "shop.example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER。example", "xn--bcher-kva.example"),
        ("faß.example", "xn--fa-hia.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("web_1", "web_1"),
        ("acme.localhost", "acme.localhost"),
    ],
)
def test_a_host_name_is_normalized_as_by_a_browser(name: str, normalized: str) -> None:
    """A host name is kept as A-labels in lower case, without a final dot."""
    assert (normalized,) == tenant(HOSTS=[name]).hosts


@pytest.mark.parametrize(
    "name",
    [
        *("*.example.org", ".example.org", "localhost", "LOCALHOST.", "127.0.0.1", "127.1", "0x7f"),
        *("[::1]", "::1", "a b", "", ".", "a..b", "-a.test", "a.test:80", "http://a.test", "a/b"),
        *("xn--a.test", "a\n.test", "\uff4c\uff4fcalhost", "a" * 64, ".".join(["a" * 60] * 5)),
    ],
)
def test_a_name_that_is_not_a_host_name_is_rejected(name: str) -> None:
    """Wildcards, `localhost`, address literals and malformed names are problems."""
    (problem,) = problems(HOSTS=[name])

    assert problem.startswith("acme.py: 'HOSTS[0]': found ")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"URL_PREFIX": "/"}, "'URL_PREFIX': found '/'; expected 1 to 4 segments"),
        ({"URL_PREFIX": "/admin"}, "'URL_PREFIX': found '/admin'; /admin is reserved"),
        ({"OLD_HOSTS": ["a.test"]}, "redirects to 'HOSTS', which is not set"),
        ({"HOSTS": ["a.test", "A.test"]}, "'a.test' is listed more than once"),
        ({"HOSTS": ["a.test"], "OLD_HOSTS": ["a.test"]}, "'a.test' is listed more than once"),
        ({"OLD_PREFIXES": ["/acme"]}, "'/acme' is listed more than once"),
        ({"HOSTS": ["a.test"], "TRUSTED_HOSTS": ["b.test"]}, "remove this key"),
    ],
)
def test_keys_that_do_not_fit_together_are_problems(keys: dict[str, Any], problem: str) -> None:
    """An address that needs host names, and an address that occurs twice, are problems."""
    (found,) = problems(**keys)

    assert problem in found


def test_the_names_of_the_host_are_not_for_tenants() -> None:
    """A tenant cannot have a name in the host's `TRUSTED_HOSTS` or `ADMIN_HOSTS`."""
    settings = HostSettings(trusted_hosts=("Apps.test", ".a.test"), admin_hosts=("admin.test",))
    values = {"SECRET_KEY": KEY, "BLUEPRINTS": ["landing"]}
    names = {"HOSTS": ["apps.test", "x.a.test"], "OLD_HOSTS": ["admin.test"]}

    with pytest.raises(TenantFileError) as caught:
        validate_loaded(LoadedFile("acme", "acme.py", "", values | names), settings)

    text = "acme.py: '{}': {} belongs to the host; remove it here or in {}."
    assert [
        text.format("HOSTS[0]", "apps.test", "TENANTRY_TRUSTED_HOSTS"),
        text.format("OLD_HOSTS[0]", "admin.test", "TENANTRY_ADMIN_HOSTS"),
    ] == [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        ("acme", {}, Address("/", ("acme.apps.test",))),
        ("acme", {"URL_PREFIX": "/x"}, Address("/x")),
        ("acme", {"HOSTS": ["a.test"]}, Address("/", ("a.test",))),
    ],
)
def test_the_pattern_gives_a_host_name(name: str, keys: dict[str, Any], expected: Address) -> None:
    """With `HOST_PATTERN`, a tenant without `HOSTS` and `URL_PREFIX` has a host name."""
    assert expected == tenant(name, "{name}.apps.test", **keys).address


def test_a_name_that_is_not_a_label_needs_hosts() -> None:
    """With `HOST_PATTERN`, a tenant whose name cannot be part of a host name must set `HOSTS`."""
    with pytest.raises(TenantFileError, match=r"'a_b' in .* set 'HOSTS'"):
        tenant("a_b", "{name}.apps.test")


SHOP = {"HOSTS": ["a.test", "b.test"], "URL_PREFIX": "/shop"}


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        (SHOP, {"HOSTS": ["b.test"], "URL_PREFIX": "/x"}, []),
        (SHOP, {"URL_PREFIX": "/shop"}, []),
        (SHOP, SHOP, ["globex.py: 'HOSTS[0]': a.test/shop is also an address of tenant 'acme'"]),
        (SHOP, {"HOSTS": ["b.test"]}, ["globex.py: 'HOSTS[0]': b.test/ contains b.test/shop"]),
        ({"HOSTS": ["b.test"]}, SHOP, ["globex.py: 'HOSTS[1]': b.test/shop is inside b.test/ "]),
        (
            {"HOSTS": ["a.test"], "OLD_HOSTS": ["c.test"]},
            {"HOSTS": ["c.test"]},
            ["globex.py: 'HOSTS[0]': c.test/ is also an address of tenant 'acme'"],
        ),
        (
            {"OLD_PREFIXES": ["/globex"]},
            {},
            ["globex.py: 'URL_PREFIX': /globex is also the prefix of tenant 'acme'"],
        ),
        (
            {},
            {"OLD_PREFIXES": ["/acme/x"]},
            ["globex.py: 'OLD_PREFIXES[0]': /acme/x is inside /acme of tenant 'acme'"],
        ),
    ],
)
def test_tenants_conflict_on_pairs_of_a_name_and_a_prefix(
    first: dict[str, Any], second: dict[str, Any], found: list[str]
) -> None:
    """Tenants can share a host name, but neither a prefix under it nor nested prefixes."""
    texts = conflicts(tenant("acme", **first), tenant("globex", **second))

    assert found == [text[: len(start)] for text, start in zip(texts, found, strict=True)]


def test_a_tenant_that_is_not_served_keeps_its_names() -> None:
    """The host names of a rejected tenant are not free, but its prefix is."""
    accepted = AcceptedTenants()
    accepted.hold("acme", Address("/shop", ("a.test",), (), ("/old",)))

    named = accepted.conflicts(tenant("globex", HOSTS=["a.test"], URL_PREFIX="/shop"))
    unnamed = accepted.conflicts(tenant("globex", URL_PREFIX="/old"))
    accepted.add(tenant("acme", HOSTS=["b.test"]))
    moved = accepted.conflicts(tenant("globex", HOSTS=["a.test"], URL_PREFIX="/shop"))

    assert ("acme", [], []) == (named[0].owner, unnamed, moved)


def test_all_claims_of_a_removed_tenant_are_free() -> None:
    """After the tenants are removed, no claim of an address remains."""
    accepted = AcceptedTenants()
    accepted.add(tenant("acme", **SHOP, OLD_HOSTS=["o.test"], OLD_PREFIXES=["/a/b"]))
    accepted.hold("globex", Address("/x/y", ("a.test",)))

    accepted.remove("acme")
    accepted.remove("globex")

    assert ({}, {}) == (accepted._addresses._owners, accepted._addresses._below)
