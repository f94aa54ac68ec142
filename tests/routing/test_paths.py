"""Of any path: either one tenant answers, and its prefix is where the path begins, or the host."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_mount import build, get, mounted, saying, tenant

from tenantry.routing.mount import Router

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
    """Return who must answer, under which root, and the path that is left."""
    for prefix, name in PREFIXES.items():
        if path == prefix or path.startswith(f"{prefix}/"):
            return name, prefix, path.removeprefix(prefix)
    return "host", "", path


@pytest.fixture(scope="module", name="mounts")
def _mounts() -> Router:
    mounts = Router(fallback=saying("host"))
    mounts.replace(mounted(tenant(name, URL_PREFIX=at), build) for at, name in PREFIXES.items())
    return mounts


@settings(max_examples=200, deadline=None, database=None)
@given(path=PATH)
@example("/acme/../globex")
@example("/acme" * 40)
@example("//acme")
@example("/" * 400)
def test_a_path_belongs_to_the_tenant_that_it_begins_with(mounts: Router, path: str) -> None:
    """Whole segments count, byte for byte; nothing is normalised, nothing is lost."""
    _, _, text = get(mounts, path)

    assert expected(path) == tuple(text.split(" ", 2))
