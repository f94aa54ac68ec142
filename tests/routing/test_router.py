"""The router decides which tenant answers which path."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from wsgi_apps import build, get, make_mount, make_tenant, saying

from servers import DEADLINE_S
from tenantry.grammar import PREFIX_SEGMENTS
from tenantry.http.environ import TENANT
from tenantry.routing.mount import Mount
from tenantry.routing.router import Router


def routing(*prefixes: str) -> Router:
    """Return a router for the given prefixes. The prefix `/a/b` belongs to the tenant `t-a-b`."""
    router = Router(fallback=saying("host"))
    router.replace(
        make_mount(make_tenant("t" + prefix.replace("/", "-"), URL_PREFIX=prefix), build)
        for prefix in prefixes
    )
    return router


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/acme", "t-acme /acme "),
        ("/acme/", "t-acme /acme /"),
        ("/acme/x", "t-acme /acme /x"),
        ("/acme//x", "t-acme /acme //x"),
        ("/acme/../globex/x", "t-acme /acme /../globex/x"),
        ("/acme/globex", "t-acme /acme /globex"),
        ("/globex/acme", "t-globex /globex /acme"),
        ("/a/b/c/d", "t-a-b-c-d /a/b/c/d "),
        ("/a/b/c/d/", "t-a-b-c-d /a/b/c/d /"),
        ("/a/b/c/d/e", "t-a-b-c-d /a/b/c/d /e"),
        ("/a/b/c/d/e/f//g/", "t-a-b-c-d /a/b/c/d /e/f//g/"),
        ("/a/b/c", "host  /a/b/c"),
        ("/a/b//c/d", "host  /a/b//c/d"),
        ("/a/b/c/dd/e", "host  /a/b/c/dd/e"),
        ("/acmecorp", "host  /acmecorp"),
        ("/acmecorp/x", "host  /acmecorp/x"),
        ("/acm", "host  /acm"),
        ("/ACME", "host  /ACME"),
        ("//acme", "host  //acme"),
        ("//acme/x", "host  //acme/x"),
        ("/./acme", "host  /./acme"),
        ("/acme;p=1/x", "host  /acme;p=1/x"),
        ("/ acme", "host  / acme"),
        ("/x/acme", "host  /x/acme"),
        ("/", "host  /"),
        ("///", "host  ///"),
        ("", "host  "),
        ("*", "host  *"),
        ("acme", "host  acme"),
    ],
)
def test_a_prefix_matches_whole_segments_only(path: str, expected: str) -> None:
    """A URL prefix matches whole path segments; `PATH_INFO` is the rest of the path."""
    router = routing("/acme", "/globex", "/a/b/c/d")

    assert (200, {}, expected) == get(router, path)


class CountingDict(dict[str, Any]):
    """A dict that counts how often keys are looked up."""

    lookups = 0

    def __contains__(self, key: object) -> bool:
        """Count the call, and look up the key."""
        self.lookups += 1
        return super().__contains__(key)


@pytest.mark.parametrize(
    ("first", "expected"), [("/acme", "t-acme /acme "), ("/nobody", "host  /nobody")]
)
def test_a_deep_path_costs_no_more_lookups_than_a_prefix_has_segments(
    first: str, expected: str
) -> None:
    """A path of 4,000 segments costs no more lookups than the longest prefix has segments."""
    router, rest = routing("/acme"), "/x" * 4000
    dispatcher = router._snapshot[""]
    dispatcher.mounts = counted = CountingDict(dispatcher.mounts)

    _, _, body = get(router, first + rest)

    assert expected + rest == body
    assert 0 < counted.lookups <= PREFIX_SEGMENTS


@pytest.mark.parametrize(
    ("path", "tenant", "script_name", "path_info"),
    [
        ("/acme/x", "t-acme", "/acme", "/x"),
        ("/acme" + "/x" * 4000, "t-acme", "/acme", "/x" * 4000),
        ("/nobody/x", None, "", "/nobody/x"),
        ("/nobody" + "/x" * 4000, None, "", "/nobody" + "/x" * 4000),
        ("*", None, "", "*"),
    ],
)
def test_a_route_is_found_before_the_request_runs(
    path: str, tenant: str | None, script_name: str, path_info: str
) -> None:
    """`route` names the tenant and splits the path once, and calls no app."""
    router = routing("/acme")
    environ = {"PATH_INFO": path, "SCRIPT_NAME": ""}

    target = router.route(environ)

    assert (tenant, script_name, path_info) == (
        environ.get(TENANT), environ["SCRIPT_NAME"], environ["PATH_INFO"],
    )  # fmt: skip
    assert (router.at("/acme") if tenant else router._fallback) is target


def test_the_host_answers_without_tenants() -> None:
    """Without tenants, the host answers all paths."""
    router = Router(fallback=saying("host"))
    before = get(router, "/acme/")

    router.replace([])

    assert [(200, {}, "host  /acme/")] * 2 == [before, get(router, "/acme/")]


def test_mounts_are_sorted_by_name() -> None:
    """The router lists all tenants by name, even those without a URL prefix."""
    router = Router(fallback=saying("host"))
    mounts = [
        make_mount(make_tenant("globex"), build),
        Mount("clash", None, build),
        make_mount(make_tenant("acme"), build),
    ]

    router.replace(mounts)

    assert ["acme", "clash", "globex"] == [mount.name for mount in router.mounts]
    assert "host  /clash/" == get(router, "/clash/")[2]


def test_a_request_sees_one_snapshot() -> None:
    """A request that has found its tenant is answered even if the tenant is then removed."""
    looked_up, replaced = threading.Event(), threading.Event()

    class Slow(CountingDict):
        def __contains__(self, key: object) -> bool:
            looked_up.set()
            assert replaced.wait(DEADLINE_S)
            return super().__contains__(key)

    router = routing("/acme", "/globex")
    dispatcher = router._snapshot[""]
    dispatcher.mounts = Slow(dispatcher.mounts)
    with ThreadPoolExecutor(1) as threads:
        in_flight = threads.submit(get, router, "/acme/x")
        assert looked_up.wait(DEADLINE_S)

        router.replace([])
        replaced.set()

        assert "t-acme /acme /x" == in_flight.result(DEADLINE_S)[2]
    assert "host  /acme/x" == get(router, "/acme/x")[2]


def test_a_request_that_came_by_a_guessed_prefix_is_not_served_there() -> None:
    """Before a tenant file is read, no request reaches the tenant by a guessed URL prefix."""

    def accept(mount: Mount) -> None:
        mount.accept(make_tenant("acme", URL_PREFIX="/other"))

    router = Router(fallback=saying("host"))
    mount = Mount("acme", "/acme", build, wait_for_validation=accept)
    router.replace([mount])

    status, headers, _ = get(router, "/acme/x")

    router.replace([mount])
    assert (503, "1") == (status, headers["Retry-After"])
    assert ["acme /other /x", "host  /acme/x"] == [
        get(router, f"/{prefix}/x")[2] for prefix in ("other", "acme")
    ]
