"""For any generated path, the router finds the tenant whose prefix the path begins with."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wsgi_apps import build, get, make_mount, make_tenant, saying

from tenantry.routing.router import Router

PREFIXES = {
    "/acme": "acme",
    "/acme-2": "acme-2",
    "/clients/acme": "inner",
    "/clients/globex": "globex",
    "/a/b/c/d": "deep",
}

ODD = [
    "",
    ".",
    "..",
    "acmecorp",
    "ACME",
    "clients",
    "%61cme",
    "acme%2f",
    "acme;p=1",
    "\x00",
    "caf\xe9",
]
SEGMENT = st.one_of(
    st.sampled_from([part for prefix in PREFIXES for part in prefix.split("/") if part] + ODD),
    st.text(st.characters(max_codepoint=255, exclude_characters="/"), max_size=8),
)
PATH = st.one_of(
    st.lists(SEGMENT, max_size=8).map(lambda parts: "/" + "/".join(parts)),
    st.text(st.characters(max_codepoint=255), max_size=40),
)


def expected(path: str) -> tuple[str, str, str]:
    """Return the expected tenant, `SCRIPT_NAME` and `PATH_INFO`."""
    for prefix, name in PREFIXES.items():
        if path == prefix or path.startswith(f"{prefix}/"):
            return name, prefix, path.removeprefix(prefix)
    return "host", "", path


@pytest.fixture(scope="module", name="router")
def _router() -> Router:
    router = Router(fallback=saying("host"))
    router.replace(
        make_mount(make_tenant(name, URL_PREFIX=prefix), build) for prefix, name in PREFIXES.items()
    )
    return router


@settings(max_examples=200, deadline=None, database=None)
@given(path=PATH)
@example("/acme/../globex")
@example("/acme" * 40)
@example("//acme")
@example("/" * 400)
def test_a_path_belongs_to_the_tenant_whose_prefix_it_begins_with(
    router: Router, path: str
) -> None:
    """The router compares whole path segments byte by byte, without normalizing the path."""
    _, _, text = get(router, path)

    assert expected(path) == tuple(text.split(" ", 2))
