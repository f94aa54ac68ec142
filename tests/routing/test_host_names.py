"""The router decides by the host name first, and redirects former addresses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.test import create_environ, run_wsgi_app
from wsgi_apps import build, get, make_mount, make_tenant, saying

from tenantry.http.environ import MATCHED_PAIR
from tenantry.routing.mount import Mount
from tenantry.routing.router import Router
from tenantry.tenants.address import Address

SHOP = {
    "HOSTS": ["shop.test", "www.shop.test"],
    "OLD_HOSTS": ["old.test"],
    "OLD_PREFIXES": ["/acme", "/acme/deep"],
}
SHARED = {"HOSTS": ["shared.test"], "URL_PREFIX": "/admin", "OLD_PREFIXES": ["/former"]}


@pytest.fixture(scope="module", name="router")
def _router() -> Router:
    tenants = [
        make_tenant("acme", **SHOP),
        make_tenant("globex", OLD_PREFIXES=["/x"]),
        make_tenant("initech", **SHARED),
        make_tenant("hooli", HOSTS=["shared.test"], URL_PREFIX="/b"),
    ]
    router = Router(fallback=saying("host"))
    router.replace([make_mount(tenant, build) for tenant in tenants], ["closed.test"])
    return router


@pytest.mark.parametrize(
    ("host", "path", "expected"),
    [
        ("shop.test", "/", "acme  /"),
        ("shop.test", "/globex/", "acme  /globex/"),
        ("shop.test", "//x", "acme  //x"),
        ("SHOP.Test.:8000", "/a", "acme  /a"),
        ("shop.test", "/-/livez", "host  /-/livez"),
        ("shop.test", "*", "host  *"),
        ("shop.test.evil.test", "/", "host  /"),
        ("xshop.test", "/globex/", "globex /globex /"),
        ("", "/globex/", "globex /globex /"),
        ("192.0.2.1:80", "/globex", "globex /globex "),
        ("shared.test", "/admin/x", "initech /admin /x"),
        ("shared.test", "/b", "hooli /b "),
        ("shared.test", "/globex/", "host  /globex/"),
        ("shared.test", "/", "host  /"),
        ("other.test", "/admin/x", "host  /admin/x"),
        ("closed.test", "/globex/", "host  /globex/"),
        ("old.test", "/-/livez", "host  /-/livez"),
    ],
)
def test_the_host_name_decides_before_the_prefix(
    router: Router, host: str, path: str, expected: str
) -> None:
    """Only the tenants that claim a host name answer under it; others share all other names."""
    assert (200, {}, expected) == get(router, path, HTTP_HOST=host)


@pytest.mark.parametrize(
    ("host", "target", "location"),
    [
        ("www.shop.test", "/a%2Fb//?x=%20y&", "//shop.test/a%2Fb//?x=%20y&"),
        ("www.shop.test:8000", "/", "//shop.test:8000/"),
        ("OLD.test.:81", "/acme/x", "//shop.test:81/acme/x"),
        ("other.test", "/acme", "//shop.test/"),
        ("other.test", "/%61cme//evil.test/x", "//shop.test//evil.test/x"),
        ("other.test", "/acme/deep/x?", "//shop.test/x"),
        ("[::1]:8000", "/acme/x", "//shop.test:8000/x"),
        ("[::1]", "/acme/x", "//shop.test/x"),
        ("other.test", "/x//evil.test", "/globex//evil.test"),
        ("other.test", "/x?q", "/globex?q"),
        ("other.test", "http://other.test/x/y?z", "/globex/y?z"),
        ("shared.test", "/former/%C3%A9", "/admin/%C3%A9"),
        ("other.test:1", "/former", "//shared.test:1/admin"),
    ],
)
def test_a_former_address_redirects(router: Router, host: str, target: str, location: str) -> None:
    """A redirect keeps the raw path, the raw query and the client's port."""
    path = "/" + target.partition("://")[2].partition("/")[2] if "://" in target else target
    environ = create_environ(path) | {"HTTP_HOST": host, "RAW_URI": target}

    _, status, headers = run_wsgi_app(router, environ, buffered=True)

    assert ("308 PERMANENT REDIRECT", location, ["max-age=60"]) == (
        status.upper(),
        headers["Location"],
        headers.getlist("Cache-Control"),
    )


def test_a_redirect_keeps_the_prefix_of_a_proxy(router: Router) -> None:
    """The prefix that a trusted proxy has removed remains in front of the new address."""
    environ = create_environ("/x/y") | {"SCRIPT_NAME": "/apps"}

    headers = run_wsgi_app(router, environ, buffered=True)[2]

    assert "/apps/globex/y" == headers["Location"]


def test_a_tenant_that_is_not_served_redirects_too() -> None:
    """A tenant whose file is rejected redirects from its other names, and answers 503."""
    router = Router(fallback=saying("host"))
    mount = Mount("acme", Address("/", ("shop.test", "www.shop.test")), build)
    mount.reject("acme.py: is broken.", "digest")
    router.replace([mount])

    answers = [get(router, "/", HTTP_HOST=name)[0] for name in ("shop.test", "www.shop.test")]

    assert [503, 308] == answers


def test_a_request_of_an_earlier_snapshot_reaches_only_the_tenants_own_names() -> None:
    """After a tenant has moved, a request that was routed before is answered only at its names."""
    mount = make_mount(make_tenant("acme", HOSTS=["a.test", "b.test"]), build)
    moved = make_tenant("acme", HOSTS=["b.test", "c.test"])
    mount.swap(moved, build(moved))

    statuses = [get(mount, "/", **{MATCHED_PAIR: (name, "")})[0] for name in ("a.test", "b.test")]

    assert [503, 200] == statuses


NAMES = ("shop.test", "www.shop.test", "old.test", "shared.test", "closed.test", "other.test")
HOST = st.one_of(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(["", ".", ":80", ".:8000", ":", "x"])).map(
        "".join
    ),
    st.sampled_from(NAMES).map(str.upper),
    st.text(st.characters(max_codepoint=255), max_size=20),
)
PART = st.sampled_from(
    ["acme", "globex", "admin", "b", "x", "former", "-", "", ".", "..", "caf\xe9"]
)
PATH = st.one_of(
    st.lists(PART, max_size=6).map(lambda parts: "/" + "/".join(parts)),
    st.text(st.characters(max_codepoint=255), max_size=20),
)
CLAIMS = {
    "shop.test": {"": "acme"},
    "shared.test": {"/admin": "initech", "/b": "hooli"},
    "": {"/globex": "globex"},
}
CLAIMED = {"shop.test", "www.shop.test", "old.test", "shared.test", "closed.test"}


@settings(max_examples=300, deadline=None, database=None)
@given(host=HOST, path=PATH)
def test_only_a_tenant_that_claims_an_address_answers(router: Router, host: str, path: str) -> None:
    """For any host name and path, the owner of the address answers, or else the host."""
    before, colon, port = host.rpartition(":")
    bare = before if colon and port.isdecimal() else host.rstrip(":")
    name = bare.lower().removesuffix(".")
    prefixes = CLAIMS.get(name, {}) if name in CLAIMED else CLAIMS[""]
    owners = [owner for prefix, owner in prefixes.items() if f"{path}/".startswith(f"{prefix}/")]
    is_for_host = path[:1] != "/" or path.startswith("/-/") or not owners

    status, _, text = get(router, path, HTTP_HOST=host, RAW_URI=path or "/")

    if status == 308:
        assert is_for_host
    else:
        assert ("host" if is_for_host else owners[0]) == text.split(" ")[0]
