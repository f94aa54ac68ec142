"""Mounts: prefixes, builds, pauses and routing, on WSGI functions of a few lines."""

import contextvars
import decimal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.test import create_environ, run_wsgi_app

from conftest import KEY
from servers import DEADLINE_S, wait_until
from tenantry.routing import build_pool as first_builds_module
from tenantry.routing.build_pool import BUILD_PATIENCE_S
from tenantry.routing.instance import Instance
from tenantry.routing.mount import (
    FILE_RETRY_AFTER_S,
    FIRST_BACK_OFF_S,
    MAINTENANCE_RETRY_AFTER_S,
    MAX_BACK_OFF_S,
    Mount,
    Router,
)
from tenantry.tenants.model import Tenant, parse_tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ACME = "http://localhost/acme"

Builder = Callable[[Tenant], Instance]


def tenant(name: str = "acme", **keys: object) -> Tenant:
    """Return a tenant with these keys."""
    values = {"SECRET_KEY": f"{name}-{KEY}", "BLUEPRINTS": ["landing"]} | keys
    return parse_tenant(name, values, data_dir=Path("instance"))


def mounted(
    tenant: Tenant, build: Builder, *, clock: Callable[[], float] = time.monotonic
) -> Mount:
    """Return the mount of a tenant whose file was accepted."""
    mount = Mount(tenant.name, tenant.url_prefix, build, clock=clock)
    mount.accept(tenant)
    return mount


def saying(text: str) -> "WSGIApplication":
    """Return an app that answers with its name, and where it and the request were mounted."""

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        start_response("200 OK", [])
        return [f"{text} {environ.get('SCRIPT_NAME')} {environ['PATH_INFO']}".encode()]

    return app


def build(tenant: Tenant) -> Instance:
    """Build an instance that says its tenant's name."""
    return Instance(saying(tenant.name), lambda: None)


def get(app: "WSGIApplication", path: str = "/acme/") -> tuple[int, dict[str, str], str]:
    """Return status, headers and body of one GET, the path taken as it is; of a mount, below it."""
    place = app.prefix if isinstance(app, Mount) else ""
    environ = create_environ(environ_overrides={"PATH_INFO": path, "SCRIPT_NAME": place})
    body, status, headers = run_wsgi_app(app, environ, buffered=True)
    return int(status[:3]), dict(headers), b"".join(body).decode()


def status_of(app: "WSGIApplication") -> int:
    """Return the status of one GET."""
    return get(app)[0]


class Clock:
    """The time, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


class SlowBuild:
    """A build that goes on until it is released; counts its starts."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.released = threading.Event()
        self.starts = 0

    def __call__(self, tenant: Tenant) -> Instance:
        """Build when released."""
        self.starts += 1
        self.started.set()
        assert self.released.wait(DEADLINE_S)
        return build(tenant)


@pytest.fixture(name="threads")
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Return sixteen threads that end with the test."""
    with ThreadPoolExecutor(16) as threads:
        yield threads


def failing(error: BaseException) -> Builder:
    """Return a build that raises `error`."""

    def fail(_: Tenant) -> Instance:
        raise error

    return fail


# -- building -----------------------------------------------------------------------------------


def test_the_first_request_builds_and_the_next_ones_do_not() -> None:
    """A mount is idle until its first request, then it serves the instance that this one built."""
    built: list[str] = []

    def counted(tenant: Tenant) -> Instance:
        built.append(tenant.name)
        return build(tenant)

    mount = mounted(tenant(), counted)
    states = [mount.state]

    statuses = [status_of(mount), status_of(mount)]

    states.append(mount.state)
    assert ([200, 200], ["acme"], ["idle", "serving"]) == (statuses, built, states)


def test_requests_at_once_build_once(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen requests that find no instance share one build, and all are answered."""
    monkeypatch.setattr(first_builds_module, "BUILD_PATIENCE_S", DEADLINE_S)
    slow, together = SlowBuild(), threading.Barrier(17)
    mount = mounted(tenant(), slow)

    def ask() -> int:
        together.wait(DEADLINE_S)
        return status_of(mount)

    answers = [threads.submit(ask) for _ in range(16)]
    together.wait(DEADLINE_S)
    assert slow.started.wait(DEADLINE_S)
    slow.released.set()

    assert [200] * 16 == [answer.result(DEADLINE_S) for answer in answers]
    assert 1 == slow.starts


def test_a_slow_build_delays_no_other_mount(threads: ThreadPoolExecutor) -> None:
    """While one tenant builds, another one builds and serves."""
    slow = SlowBuild()
    acme, globex = mounted(tenant("acme"), slow), mounted(tenant("globex"), build)
    waiting = threads.submit(status_of, acme)
    assert slow.started.wait(DEADLINE_S)

    status = threads.submit(status_of, globex).result(DEADLINE_S)

    is_acme_building = not waiting.done()
    slow.released.set()
    assert (200, True, 200) == (status, is_acme_building, waiting.result(DEADLINE_S))


def test_a_request_does_not_wait_for_an_old_build(threads: ThreadPoolExecutor) -> None:
    """While a build is older than the patience, further requests get 503 at once."""
    clock, slow = Clock(), SlowBuild()
    mount = mounted(tenant(), slow, clock=clock)
    first: Future[int] = threads.submit(status_of, mount)
    assert slow.started.wait(DEADLINE_S)
    wait_until(lambda: bool(mount._first_builds._patient))  # the first one waits for it
    clock.now_s += BUILD_PATIENCE_S

    status, headers, _ = threads.submit(get, mount).result(DEADLINE_S)

    slow.released.set()
    assert (503, "1", 1) == (status, headers["Retry-After"], slow.starts)
    assert (200, 200) == (first.result(DEADLINE_S), status_of(mount))


def test_a_build_that_hangs_holds_no_request(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the one that asked for it: it gets 503 and the build goes on, for those to come."""
    for name in ("LONG_PATIENCE_S", "BUILD_PATIENCE_S"):
        monkeypatch.setattr(first_builds_module, name, 0.0)
    slow = SlowBuild()
    mount = mounted(tenant(), slow)

    answers = [threads.submit(get, mount).result(DEADLINE_S) for _ in range(2)]

    slow.released.set()
    wait_until(lambda: mount.instance is not None)
    assert [(503, "1")] * 2 == [(status, headers["Retry-After"]) for status, headers, _ in answers]
    assert (200, 1) == (status_of(mount), slow.starts)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ValueError("no")], ids=repr)
def test_whatever_a_build_raises_is_a_503(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed build costs its own tenant only: 503 without the reason, which the log has."""
    mount = mounted(tenant(), failing(error), clock=Clock())

    status, headers, body = get(mount)

    assert (503, "1", "failed") == (status, headers["Retry-After"], mount.state)
    assert "no" not in body.split()
    [record] = caplog.records
    assert ("tenant.build_failed", "acme") == (record.getMessage(), record.__dict__["tenant"])
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize(
    ("error", "reason"), [(ValueError("no driver"), "no driver"), (KeyError(), "KeyError")]
)
def test_a_failed_mount_tells_operators_the_reason(error: Exception, reason: str) -> None:
    """The reason is the error's text, or its name where it has none."""
    mount = mounted(tenant(), failing(error))

    mount.wake()

    assert reason == mount.reason


def test_an_exception_without_a_text_is_contained() -> None:
    """An exception whose own `__str__` raises is one more failed build."""

    class Wrong(Exception):  # noqa: N818 - what it is called is what the reason says
        def __str__(self) -> str:
            raise SystemExit(3)

    mount = mounted(tenant(), failing(Wrong()))

    assert (503, "Wrong") == (status_of(mount), mount.reason)


def test_pauses_after_failed_builds_double_up_to_a_minute() -> None:
    """A build is tried again after 1, 2, 4 … 60 s, and not before."""
    clock, starts = Clock(), [0.0]

    def fail(_: Tenant) -> Instance:
        starts.append(clock.now_s)
        raise ValueError("no")

    mount = mounted(tenant(), fail, clock=clock)
    pauses: list[int] = []
    for _ in range(9):
        pauses.append(int(get(mount)[1]["Retry-After"]))
        clock.now_s += pauses[-1] - 0.5
        assert 503 == status_of(mount)
        clock.now_s += 0.5

    assert [1, 2, 4, 8, 16, 32, 60, 60, 60] == pauses
    assert 9 == len(starts) - 1
    assert (1.0, 60.0) == (FIRST_BACK_OFF_S, MAX_BACK_OFF_S)


def test_a_request_within_the_pause_is_told_what_is_left_of_it() -> None:
    """`Retry-After` is the rest of the pause, rounded up."""
    clock = Clock()
    mount = mounted(tenant(), failing(ValueError()), clock=clock)
    for _ in range(3):
        status_of(mount)
        clock.now_s += 4
    clock.now_s -= 2.5

    assert "3" == get(mount)[1]["Retry-After"]


def test_a_build_that_succeeds_forgets_the_failures() -> None:
    """A mended tenant serves, says no reason, and would begin again with the shortest pause."""
    clock, errors = Clock(), [ValueError("no"), ValueError("no")]

    def mended(tenant: Tenant) -> Instance:
        if errors:
            raise errors.pop()
        return build(tenant)

    mount = mounted(tenant(), mended, clock=clock)
    for _ in range(2):
        assert 503 == status_of(mount)
        clock.now_s += MAX_BACK_OFF_S

    status = status_of(mount)

    assert (200, "serving", "") == (status, mount.state, mount.reason)


_mood: contextvars.ContextVar[str] = contextvars.ContextVar("mood", default="calm")


def test_a_build_leaves_nothing_in_the_thread() -> None:
    """Context variables and decimal precision that an endpoint's import sets stay its own."""
    decimal.getcontext()

    def moody(tenant: Tenant) -> Instance:
        _mood.set("secret of acme")
        decimal.getcontext().prec = 3
        return build(tenant)

    status = status_of(mounted(tenant(), moody))

    assert (200, "calm", 28) == (status, _mood.get(), decimal.getcontext().prec)


def test_waking_builds_like_a_request_does() -> None:
    """Whoever wakes a mount gets nothing, or the 503 that a request would get."""
    good, bad = mounted(tenant(), build), mounted(tenant(), failing(ValueError()))

    refusals = [good.wake(), good.wake(), bad.wake(), bad.wake()]

    assert [None, None, None] == refusals[:3]
    assert refusals[3] is not None
    assert (True, None) == (good.instance is not None, bad.instance)


# -- not serving --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maintenance", "detail"), [(True, "Down for maintenance."), ("Back at noon.", "Back at noon.")]
)
def test_maintenance_is_a_503_that_builds_nothing(maintenance: bool | str, detail: str) -> None:
    """During maintenance every request gets 503 with the tenant's message, and no build runs."""
    mount = mounted(tenant(MAINTENANCE=maintenance), failing(AssertionError()))

    status, headers, body = get(mount)

    assert (503, str(MAINTENANCE_RETRY_AFTER_S)) == (status, headers["Retry-After"])
    assert f'"detail": "{detail}"' in body
    assert "maintenance" == mount.state


def test_a_rejected_file_is_a_503_without_a_reason() -> None:
    """Clients learn when to come again, and nothing else; operators find the reason."""
    mount = Mount("acme", "/acme", build)
    mount.reject("acme.py:3: SyntaxError", "5e1f")

    status, headers, body = get(mount)
    mount.close()

    assert (503, str(FILE_RETRY_AFTER_S)) == (status, headers["Retry-After"])
    assert "SyntaxError" not in body
    assert ("failed", "acme.py:3: SyntaxError") == (mount.state, mount.reason)


def test_close_closes_the_instance_once_and_ends_serving() -> None:
    """After `close()`, however often it is called, requests get 503 and nothing is built."""
    events: list[str] = []

    def recorded(tenant: Tenant) -> Instance:
        events.append("built")
        return Instance(saying(tenant.name), lambda: events.append("closed"))

    mount = mounted(tenant(), recorded)
    status_of(mount)

    mount.close()
    mount.close()

    assert (503, ["built", "closed"]) == (status_of(mount), events)


def test_close_does_not_wait_for_a_build(threads: ThreadPoolExecutor) -> None:
    """An instance that is being built when the mount closes is closed when it is ready."""
    slow, closed = SlowBuild(), threading.Event()

    def closing(tenant: Tenant) -> Instance:
        return Instance(slow(tenant).wsgi, closed.set)

    mount = mounted(tenant(), closing)
    asked = threads.submit(status_of, mount)
    assert slow.started.wait(DEADLINE_S)

    mount.close()

    was_closed = closed.is_set()
    slow.released.set()
    assert (503, False, True) == (asked.result(DEADLINE_S), was_closed, closed.is_set())


# -- changes ------------------------------------------------------------------------------------


def say_app_name(tenant: Tenant) -> Instance:
    """Build an instance that says its content's `APP_NAME`."""
    return Instance(saying(tenant.app_name), lambda: None)


def version(number: int, **keys: object) -> Tenant:
    """Return content of acme's that differs from the other versions."""
    return tenant("acme", APP_NAME=f"v{number}", **keys)


def word_of(mount: Mount) -> str:
    """Return what the instance says."""
    return get(mount)[2].split()[0]


def test_content_is_accepted_unbuilt_only_before_the_first_build() -> None:
    """A mount that has served keeps what is known to build; one that has not takes the newest."""
    mount = mounted(version(1), say_app_name)

    before, words = mount.accept(version(2)), [word_of(mount)]
    after = mount.accept(version(3))
    words.append(word_of(mount))

    assert (True, False, ["v2", "v2"]) == (before, after, words)


def test_a_swap_returns_who_is_retired() -> None:
    """The next request finds the new instance; the old one is closed, for nothing was in flight."""
    mount = mounted(version(1), say_app_name)
    mount.wake()
    old, new = mount.instance, say_app_name(version(2))

    retired = mount.swap(version(2), new)

    assert retired is old
    assert old is not None
    assert (True, "v2", "serving") == (old.is_closed, word_of(mount), mount.state)


def test_a_request_in_flight_finishes_on_the_old_instance() -> None:
    """A streaming body is served by the app that began it; then that app is closed."""
    closed = threading.Event()

    def streaming(_: "WSGIEnvironment", start: "StartResponse") -> Iterator[bytes]:
        start("200 OK", [])
        yield b"one "
        yield str(closed.is_set()).encode()

    mount = mounted(version(1), lambda _: Instance(streaming, closed.set))
    body, _, _ = run_wsgi_app(mount, create_environ(base_url=ACME))

    mount.swap(version(2), say_app_name(version(2)))

    words = [b"".join(body), word_of(mount)]
    body.close()  # type: ignore[attr-defined]
    assert ([b"one False", "v2"], True) == (words, closed.is_set())


def test_a_request_that_meets_a_retired_instance_looks_again() -> None:
    """Between finding an instance and getting its lease the instance may be replaced."""
    mount = mounted(version(1), say_app_name)
    mount.wake()

    class Late(Instance):
        def lease(self) -> bool:
            mount.swap(version(2), say_app_name(version(2)))
            return super().lease()

    mount._instance = Late(saying("late"), lambda: None)

    assert "v2" == word_of(mount)


def test_content_that_changes_while_it_is_built_is_built_anew(threads: ThreadPoolExecutor) -> None:
    """`accept` does not wait for a build; what that builds is closed, and nobody gets it."""
    slow, closed = SlowBuild(), []

    def build_slowly(tenant: Tenant) -> Instance:
        slow(tenant)
        return Instance(saying(tenant.app_name), lambda: closed.append(tenant.app_name))

    mount = mounted(version(1), build_slowly)
    waiting = threads.submit(word_of, mount)
    assert slow.started.wait(DEADLINE_S)

    is_accepted = mount.accept(version(2))

    is_built = mount.instance is not None
    slow.released.set()
    assert (True, False, "v2") == (is_accepted, is_built, waiting.result(DEADLINE_S))
    assert ["v1"] == closed


def test_no_lock_is_held_while_user_code_builds(threads: ThreadPoolExecutor) -> None:
    """Whatever else is done with a mount returns while a build goes on."""
    slow = SlowBuild()
    mount = mounted(version(1), slow)
    waiting = threads.submit(status_of, mount)
    assert slow.started.wait(DEADLINE_S)

    def all_else() -> str:
        mount.reject("no", "5e1f")
        mount.sleep()
        mount.confirm()
        return mount.state

    state = threads.submit(all_else).result(DEADLINE_S)

    slow.released.set()
    assert ("idle", 200) == (state, waiting.result(DEADLINE_S))


def test_new_content_forgets_the_back_off() -> None:
    """A mended file is built by the next request, however long the pause was."""
    clock = Clock()
    mount = Mount("acme", "/acme", lambda tenant: builders[tenant.app_name](tenant), clock=clock)
    builders = {"v1": failing(ValueError("no")), "v2": build}
    mount.accept(version(1))
    statuses = [status_of(mount), status_of(mount)]

    mount.accept(version(2))

    assert [503, 503, 200] == [*statuses, status_of(mount)]


def test_a_rejection_outlives_a_build_of_the_old_content() -> None:
    """A stale mount whose old instance is built again, at the second try, is still stale."""
    clock, errors = Clock(), [ValueError("no")]

    def mended(tenant: Tenant) -> Instance:
        if errors:
            raise errors.pop()
        return build(tenant)

    mount = mounted(version(1), mended, clock=clock)
    mount.reject("acme.py:3: bad", "5e1f")
    statuses = [status_of(mount)]
    reasons = [mount.reason]
    clock.now_s += MAX_BACK_OFF_S

    statuses.append(status_of(mount))

    assert ([503, 200], "stale") == (statuses, mount.state)
    assert ["acme.py:3: bad"] * 2 == [*reasons, mount.reason]


def test_sleep_is_only_without_requests_and_waking_is_a_build() -> None:
    """An instance with an open body stays; an idle one goes, and the next request builds it."""
    built: list[str] = []

    def counted(tenant: Tenant) -> Instance:
        built.append(tenant.name)
        return build(tenant)

    mount = mounted(tenant(), counted)
    body = mount(create_environ(base_url=ACME), lambda *_: lambda _: None)
    slept = [mount.sleep() is not None]
    body.close()  # type: ignore[attr-defined]

    slept.append(mount.sleep() is not None)

    states = [mount.state]
    assert 200 == status_of(mount)
    assert ([False, True], ["idle"], ["acme"] * 2) == (slept, states, built)


def test_a_closed_mount_retires_what_is_swapped_in() -> None:
    """An instance that is ready too late is closed, and nothing serves."""
    mount, late = mounted(version(1), build), say_app_name(version(2))
    mount.close()

    retired = mount.swap(version(2), late)

    assert (True, True, None) == (retired is late, late.is_closed, mount.instance)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("", "idle"),
        ("accept", "idle"),
        ("reject", "failed"),
        ("accept wake", "serving"),
        ("accept fail", "failed"),
        ("accept wake reject", "stale"),
        ("accept wake reject confirm", "serving"),
        ("accept wake reject swap", "serving"),
        ("accept fail reject", "failed"),
        ("accept wake sleep", "idle"),
        ("accept wake maintain", "maintenance"),
        ("reject maintain", "maintenance"),
        ("rest", "maintenance"),
        ("accept wake maintain unmaintain", "serving"),
    ],
)
def test_the_states_of_a_mount(steps: str, expected: str) -> None:
    """What the file and the operator do decides the state, as the contract's section 5 has it."""
    builders: list[Builder] = [build]
    mount = Mount("acme", "/acme", lambda asked: builders[-1](asked), clock=Clock())  # noqa: PLW0108 - the last one then
    acts: dict[str, Callable[[], object]] = {
        "accept": lambda: mount.accept(version(1)),
        "rest": lambda: mount.accept(version(1, MAINTENANCE=True)),
        "reject": lambda: mount.reject("no", "5e1f"),
        "confirm": mount.confirm,
        "swap": lambda: mount.swap(version(2), build(version(2))),
        "wake": mount.wake,
        "fail": lambda: (builders.append(failing(ValueError("no"))), mount.wake()),
        "sleep": mount.sleep,
        "maintain": lambda: setattr(mount, "operator_maintenance", "Back at noon."),
        "unmaintain": lambda: setattr(mount, "operator_maintenance", False),
    }

    for step in steps.split():
        acts[step]()

    assert expected == mount.state


def test_a_request_for_an_unjudged_file_waits_for_the_verdict() -> None:
    """It asks for the verdict and then serves; without one it is a 503 that says when to come."""

    def accept(mount: Mount) -> None:
        mount.accept(version(1))

    judged = Mount("acme", "/acme", say_app_name, await_verdict=accept)
    unjudged = Mount("acme", "/acme", say_app_name)

    statuses = [get(one)[:2] for one in (judged, unjudged)]

    assert (200, {}) == statuses[0]
    assert (503, "1") == (statuses[1][0], statuses[1][1]["Retry-After"])


def test_who_waited_at_a_guessed_place_is_not_served_there() -> None:
    """The verdict says another prefix: the guessed one may be another tenant's."""

    def accept(mount: Mount) -> None:
        mount.accept(version(1, URL_PREFIX="/other"))

    mounts, mount = (
        Router(fallback=saying("host")),
        Mount("acme", "/acme", say_app_name, await_verdict=accept),
    )
    mounts.replace([mount])

    status, headers, _ = get(mounts, "/acme/x")

    mounts.replace([mount])
    assert (503, "1") == (status, headers["Retry-After"])
    assert ["v1 /other /x", "host  /acme/x"] == [
        get(mounts, f"/{at}/x")[2] for at in ("other", "acme")
    ]


# -- routing ------------------------------------------------------------------------------------


def routing(*prefixes: str) -> Router:
    """Return a routing over mounts at these prefixes, that say their prefix's words."""
    mounts = Router(fallback=saying("host"))
    mounts.replace(
        mounted(tenant("t" + prefix.replace("/", "-"), URL_PREFIX=prefix), build)
        for prefix in prefixes
    )
    return mounts


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
    """A path goes to the mount whose prefix is its first segments, as they are; else to the host.

    SCRIPT_NAME is the prefix, PATH_INFO the rest; together they are the path.
    """
    mounts = routing("/acme", "/globex", "/a/b/c/d")

    assert (200, {}, expected) == get(mounts, path)


class CountingDict(dict[str, Any]):
    """A mapping that counts how often it is asked."""

    lookups = 0

    def __contains__(self, key: object) -> bool:
        self.lookups += 1
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Count and look up."""
        self.lookups += 1
        return super().get(key, default)


@pytest.mark.parametrize(
    ("first", "expected"), [("/acme", "t-acme /acme "), ("/nobody", "host  /nobody")]
)
def test_a_deep_path_costs_five_lookups_at_most(first: str, expected: str) -> None:
    """A path of 4,000 segments reaches its mount whole, and is no dearer than one of four."""
    mounts, tail = routing("/acme"), "/x" * 4000
    counted = CountingDict(mounts._dispatch.mounts)
    mounts._dispatch.mounts = counted

    _, _, body = get(mounts, first + tail)

    assert expected + tail == body
    assert counted.lookups <= 5


def test_an_empty_routing_answers_with_the_host() -> None:
    """A host without tenants serves its own pages, before the first `replace` and after."""
    mounts = Router(fallback=saying("host"))
    before = get(mounts, "/acme/")

    mounts.replace([])

    assert [(200, {}, "host  /acme/")] * 2 == [before, get(mounts, "/acme/")]


def test_mounts_are_in_the_order_of_names() -> None:
    """`all` is sorted, and has the mounts without a prefix too, which no path reaches."""
    mounts = Router(fallback=saying("host"))
    placed = [
        mounted(tenant("globex"), build),
        Mount("clash", None, build),
        mounted(tenant("acme"), build),
    ]

    mounts.replace(placed)

    assert ["acme", "clash", "globex"] == [mount.name for mount in mounts.all]
    assert "host  /clash/" == get(mounts, "/clash/")[2]


def test_a_request_in_flight_sees_one_routing_whole(threads: ThreadPoolExecutor) -> None:
    """A mount that is removed while a request looks for it answers this request, not the next."""
    asked, replaced = threading.Event(), threading.Event()

    class Slow(CountingDict):
        def __contains__(self, key: object) -> bool:
            asked.set()
            assert replaced.wait(DEADLINE_S)
            return super().__contains__(key)

    mounts = routing("/acme", "/globex")
    mounts._dispatch.mounts = Slow(mounts._dispatch.mounts)
    in_flight = threads.submit(get, mounts, "/acme/x")
    assert asked.wait(DEADLINE_S)

    mounts.replace([])
    replaced.set()

    assert "t-acme /acme /x" == in_flight.result(DEADLINE_S)[2]
    assert "host  /acme/x" == get(mounts, "/acme/x")[2]
