"""A mount serves one tenant at its URL prefix.

The mount builds the app on the first request, replaces the app after changes, and knows the
tenant's state.
"""

import contextvars
import decimal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from werkzeug.test import create_environ, run_wsgi_app
from wsgi_apps import Builder, build, get, make_mount, make_tenant, saying

from servers import DEADLINE_S, wait_until
from tenantry.http.environ import START_WAIT_S
from tenantry.routing import build_pool
from tenantry.routing.build_failure import MAX_PAUSE_S
from tenantry.routing.build_pool import SHORT_WAIT_S
from tenantry.routing.instance import Instance
from tenantry.routing.mount import FILE_RETRY_AFTER_S, MAINTENANCE_RETRY_AFTER_S, Mount
from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ACME = "http://localhost/acme"


def status_of(app: "WSGIApplication") -> int:
    """Return the status of a GET request."""
    return get(app)[0]


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Return the time that the test has set."""
        return self.now_s


class SlowBuild:
    """A build that counts how often it starts, and that ends when the test says so."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.released = threading.Event()
        self.starts = 0

    def __call__(self, tenant: Tenant) -> Instance:
        """Return an app when the test allows it."""
        self.starts += 1
        self.started.set()
        assert self.released.wait(DEADLINE_S)
        return build(tenant)


@pytest.fixture(name="threads")
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Return a pool of sixteen threads. The fixture closes the pool after the test."""
    with ThreadPoolExecutor(16) as threads:
        yield threads


def failing(error: BaseException) -> Builder:
    """Return a build function that raises `error`."""

    def fail(_: Tenant) -> Instance:
        raise error

    return fail


def recovering(*errors: Exception) -> Builder:
    """Return a build function that raises each of `errors` once, and then succeeds."""
    left = list(errors)

    def recover(tenant: Tenant) -> Instance:
        if left:
            raise left.pop(0)
        return build(tenant)

    return recover


def counting(names: list[str]) -> Builder:
    """Return a build function that appends each built tenant's name to a list."""

    def count(tenant: Tenant) -> Instance:
        names.append(tenant.name)
        return build(tenant)

    return count


# -- first builds -------------------------------------------------------------------------------


def test_only_the_first_request_builds() -> None:
    """A tenant is idle until its first request builds the app, which later requests reuse."""
    built: list[str] = []
    mount = make_mount(make_tenant(), counting(built))
    states = [mount.state]

    statuses = [status_of(mount), status_of(mount)]

    states.append(mount.state)
    assert ([200, 200], ["acme"], ["idle", "serving"]) == (statuses, built, states)


def test_concurrent_first_requests_share_one_build(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If sixteen first requests arrive at once, one request builds the app for all."""
    monkeypatch.setattr(build_pool, "SHORT_WAIT_S", DEADLINE_S)
    slow, together = SlowBuild(), threading.Barrier(17)
    mount = make_mount(make_tenant(), slow)

    def ask() -> int:
        together.wait(DEADLINE_S)
        return status_of(mount)

    answers = [threads.submit(ask) for _ in range(16)]
    together.wait(DEADLINE_S)
    assert slow.started.wait(DEADLINE_S)
    slow.released.set()

    assert [200] * 16 == [answer.result(DEADLINE_S) for answer in answers]
    assert 1 == slow.starts


def test_a_request_can_wait_for_a_build_without_a_thread() -> None:
    """`wait_s` starts the build, returns the maximum wait, and returns 0 after the build."""
    clock, slow = Clock(), SlowBuild()
    ended = threading.Event()
    mount = make_mount(make_tenant(), slow, clock=clock, note_build_end=ended.set)
    waits_s = [mount.wait_s()]
    assert slow.started.wait(DEADLINE_S)
    clock.now_s += 5.0
    waits_s.append(mount.wait_s())
    slow.released.set()
    assert ended.wait(DEADLINE_S)
    waits_s.append(mount.wait_s())

    assert ([START_WAIT_S, START_WAIT_S - 5.0, 0.0], 1) == (waits_s, slow.starts)


def test_no_request_waits_for_a_build_that_has_failed() -> None:
    """During the pause after a failed build, the mount answers 503 without a wait."""
    ended = threading.Event()

    def fail(_: Tenant) -> Instance:
        raise ValueError("no")

    mount = make_mount(make_tenant(), fail, note_build_end=ended.set)
    mount.wait_s()
    assert ended.wait(DEADLINE_S)

    assert (0.0, 503) == (mount.wait_s(), status_of(mount))


def test_a_request_can_wait_for_a_validation_without_a_thread() -> None:
    """Before the tenant file is validated, the mount asks for the validation."""
    mount = Mount("acme", "/acme", build, ask_for_validation=lambda mount: len(mount.name))
    before = mount.wait_s()
    mount.reject("no key", "digest")

    assert (4, 0.0) == (before, mount.wait_s())


def test_a_slow_build_delays_no_other_mount(threads: ThreadPoolExecutor) -> None:
    """A slow build of one tenant's app does not delay other tenants."""
    slow = SlowBuild()
    acme = make_mount(make_tenant("acme"), slow)
    globex = make_mount(make_tenant("globex"), build)
    waiting = threads.submit(status_of, acme)
    assert slow.started.wait(DEADLINE_S)

    status = threads.submit(status_of, globex).result(DEADLINE_S)

    is_acme_building = not waiting.done()
    slow.released.set()
    assert (200, True, 200) == (status, is_acme_building, waiting.result(DEADLINE_S))


def test_only_the_first_request_waits_for_an_old_build(threads: ThreadPoolExecutor) -> None:
    """If an app takes long to build, only the first request waits; later requests get 503."""
    clock, slow = Clock(), SlowBuild()
    mount = make_mount(make_tenant(), slow, clock=clock)
    first: Future[int] = threads.submit(status_of, mount)
    assert slow.started.wait(DEADLINE_S)
    wait_until(lambda: bool(mount._build_pool._long_waits))  # the first request is now waiting
    clock.now_s += SHORT_WAIT_S

    status, headers, _ = threads.submit(get, mount).result(DEADLINE_S)

    slow.released.set()
    assert (503, "1", 1) == (status, headers["Retry-After"], slow.starts)
    assert (200, 200) == (first.result(DEADLINE_S), status_of(mount))


def test_a_build_that_hangs_occupies_no_request_thread(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a build hangs, even the request that started it gets 503, but the build continues."""
    for name in ("START_WAIT_S", "SHORT_WAIT_S"):
        monkeypatch.setattr(build_pool, name, 0.0)
    slow = SlowBuild()
    mount = make_mount(make_tenant(), slow)

    answers = [threads.submit(get, mount).result(DEADLINE_S) for _ in range(2)]

    slow.released.set()
    wait_until(lambda: mount.instance is not None)
    assert [(503, "1")] * 2 == [(status, headers["Retry-After"]) for status, headers, _ in answers]
    assert (200, 1) == (status_of(mount), slow.starts)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ValueError("no")], ids=repr)
def test_whatever_a_build_raises_is_a_503(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """If a build raises, clients get 503 without the reason, and the log has the reason."""
    mount = make_mount(make_tenant(), failing(error), clock=Clock())

    status, headers, body = get(mount)

    assert (503, "1", "failed") == (status, headers["Retry-After"], mount.state)
    assert "no" not in body.split()
    [record] = caplog.records
    assert ("tenant.build_failed", "acme") == (record.getMessage(), record.__dict__["tenant"])
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_a_failed_mount_shows_operators_the_reason() -> None:
    """Operators see the type and text of the exception that made a build fail."""
    mount = make_mount(make_tenant(), failing(ValueError("no driver")))

    mount.ensure_instance()

    assert "ValueError: no driver; see the traceback in the log." == mount.reason


def test_a_failed_build_is_not_repeated_before_its_pause_ends() -> None:
    """The pauses between failed builds double from 1 s to 60 s.

    Clients see the pause as `Retry-After`.
    """
    clock, built = Clock(), list[float]()

    def fail(_: Tenant) -> Instance:
        built.append(clock.now_s)
        raise ValueError("no")

    mount = make_mount(make_tenant(), fail, clock=clock)
    pauses: list[int] = []
    for _ in range(9):
        pauses.append(int(get(mount)[1]["Retry-After"]))
        clock.now_s += pauses[-1] - 0.5
        assert 503 == status_of(mount)
        clock.now_s += 0.5

    assert ([1, 2, 4, 8, 16, 32, 60, 60, 60], 9) == (pauses, len(built))


def test_retry_after_is_the_rest_of_the_pause_rounded_up() -> None:
    """During the pause after a failed build, `Retry-After` is the time until the next attempt."""
    clock = Clock()
    mount = make_mount(make_tenant(), failing(ValueError()), clock=clock)
    for _ in range(3):
        status_of(mount)
        clock.now_s += 4
    clock.now_s -= 2.5

    assert "3" == get(mount)[1]["Retry-After"]


def test_a_successful_build_clears_the_failure() -> None:
    """After a successful build, a tenant serves, and the reason for a failure is gone."""
    clock = Clock()
    mount = make_mount(make_tenant(), recovering(ValueError("no"), ValueError("no")), clock=clock)
    for _ in range(2):
        assert 503 == status_of(mount)
        clock.now_s += MAX_PAUSE_S

    status = status_of(mount)

    assert (200, "serving", "") == (status, mount.state, mount.reason)


_mood: contextvars.ContextVar[str] = contextvars.ContextVar("mood", default="calm")


def test_a_build_leaves_nothing_in_the_thread() -> None:
    """A build cannot change the context variables or the decimal precision of its thread."""
    decimal.getcontext()

    def moody(tenant: Tenant) -> Instance:
        _mood.set("secret of acme")
        decimal.getcontext().prec = 3
        return build(tenant)

    status = status_of(make_mount(make_tenant(), moody))

    assert (200, "calm", 28) == (status, _mood.get(), decimal.getcontext().prec)


def test_an_instance_can_be_built_without_a_request() -> None:
    """`ensure_instance` builds an app without a request, and returns a 503 if the build fails."""
    good = make_mount(make_tenant(), build)
    bad = make_mount(make_tenant(), failing(ValueError()))

    refusals = [
        good.ensure_instance(),
        good.ensure_instance(),
        bad.ensure_instance(),
        bad.ensure_instance(),
    ]

    assert [None, None, None] == refusals[:3]
    assert refusals[3] is not None
    assert (True, None) == (good.instance is not None, bad.instance)


# -- not serving --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maintenance", "detail"), [(True, "Down for maintenance."), ("Back at noon.", "Back at noon.")]
)
def test_maintenance_is_a_503_that_builds_nothing(maintenance: bool | str, detail: str) -> None:
    """In maintenance, every request gets 503 with the tenant's message, and no app is built."""
    mount = make_mount(make_tenant(MAINTENANCE=maintenance), failing(AssertionError()))

    status, headers, body = get(mount)

    assert (503, str(MAINTENANCE_RETRY_AFTER_S)) == (status, headers["Retry-After"])
    assert f'"detail": "{detail}"' in body
    assert "maintenance" == mount.state


def test_a_rejected_file_is_a_503_without_a_reason() -> None:
    """Clients of a rejected tenant get 503 with `Retry-After`, and operators see the reason."""
    mount = Mount("acme", "/acme", build)
    mount.reject("acme.py:3: SyntaxError", "5e1f")

    status, headers, body = get(mount)
    mount.close()

    assert (503, str(FILE_RETRY_AFTER_S)) == (status, headers["Retry-After"])
    assert "SyntaxError" not in body
    assert ("failed", "acme.py:3: SyntaxError") == (mount.state, mount.reason)


def test_close_closes_the_instance_once() -> None:
    """After a mount is closed, requests get 503, and no app is built."""
    events: list[str] = []

    def record(tenant: Tenant) -> Instance:
        events.append("built")
        return Instance(saying(tenant.name), lambda: events.append("closed"))

    mount = make_mount(make_tenant(), record)
    status_of(mount)

    mount.close()
    mount.close()

    assert (503, ["built", "closed"]) == (status_of(mount), events)


def test_close_does_not_wait_for_a_build(threads: ThreadPoolExecutor) -> None:
    """If a mount is closed during a build, the new app is closed when the build ends."""
    slow, closed = SlowBuild(), threading.Event()
    mount = make_mount(make_tenant(), lambda tenant: Instance(slow(tenant).wsgi, closed.set))
    asked = threads.submit(status_of, mount)
    assert slow.started.wait(DEADLINE_S)

    mount.close()

    was_closed = closed.is_set()
    slow.released.set()
    assert (503, False, True) == (asked.result(DEADLINE_S), was_closed, closed.is_set())


# -- changes ------------------------------------------------------------------------------------


def say_app_name(tenant: Tenant) -> Instance:
    """Build an app instance that answers with the `APP_NAME` of the tenant file."""
    return Instance(saying(tenant.app_name), lambda: None)


def version(number: int, **keys: object) -> Tenant:
    """Return acme with an `APP_NAME` that contains the given version number."""
    return make_tenant("acme", APP_NAME=f"v{number}", **keys)


def word_of(mount: Mount) -> str:
    """Return the first word of the app's response."""
    return get(mount)[2].split()[0]


def test_unbuilt_content_is_accepted_only_before_the_first_build() -> None:
    """If an app has been built, a change is accepted only once the new version has been built."""
    mount = make_mount(version(1), say_app_name)

    before, words = mount.accept(version(2)), [word_of(mount)]
    after = mount.accept(version(3))
    words.append(word_of(mount))

    assert (True, False, ["v2", "v2"]) == (before, after, words)


def test_a_swap_returns_the_retired_instance() -> None:
    """Replacing an idle app closes the old app immediately."""
    mount = make_mount(version(1), say_app_name)
    mount.ensure_instance()
    old, new = mount.instance, say_app_name(version(2))

    retired = mount.swap(version(2), new)

    assert retired is old
    assert old is not None
    assert (True, "v2", "serving") == (old.is_closed, word_of(mount), mount.state)


def test_a_request_in_flight_finishes_on_the_old_instance() -> None:
    """If an app is replaced while it streams a response, the old app finishes that response."""
    closed = threading.Event()

    def streaming(_: "WSGIEnvironment", start: "StartResponse") -> Iterator[bytes]:
        start("200 OK", [])
        yield b"one "
        yield str(closed.is_set()).encode()

    mount = make_mount(version(1), lambda _: Instance(streaming, closed.set))
    body, _, _ = run_wsgi_app(mount, create_environ(base_url=ACME))

    mount.swap(version(2), say_app_name(version(2)))

    words = [b"".join(body), word_of(mount)]
    body.close()  # type: ignore[attr-defined]
    assert ([b"one False", "v2"], True) == (words, closed.is_set())


def test_a_request_that_finds_a_retired_instance_looks_again() -> None:
    """If an app is replaced just before a request uses it, the request uses the new app."""
    mount = make_mount(version(1), say_app_name)
    mount.ensure_instance()

    class Replaced(Instance):
        def answer(
            self, environ: "WSGIEnvironment", start_response: "StartResponse"
        ) -> Iterable[bytes] | None:
            mount.swap(version(2), say_app_name(version(2)))
            return super().answer(environ, start_response)

    mount.instance = Replaced(saying("late"), lambda: None)

    assert "v2" == word_of(mount)


def test_content_that_changes_during_its_build_is_built_again(
    threads: ThreadPoolExecutor,
) -> None:
    """If a tenant file changes while its app is built, the new version is built instead."""
    slow, closed = SlowBuild(), []

    def build_slowly(tenant: Tenant) -> Instance:
        slow(tenant)
        return Instance(saying(tenant.app_name), lambda: closed.append(tenant.app_name))

    mount = make_mount(version(1), build_slowly)
    waiting = threads.submit(word_of, mount)
    assert slow.started.wait(DEADLINE_S)

    is_accepted = mount.accept(version(2))

    is_built = mount.instance is not None
    slow.released.set()
    assert (True, False, "v2") == (is_accepted, is_built, waiting.result(DEADLINE_S))
    assert ["v1"] == closed


def test_no_lock_is_held_while_a_tenant_builds(threads: ThreadPoolExecutor) -> None:
    """While a tenant's app is built, no other operation on the tenant has to wait."""
    slow = SlowBuild()
    mount = make_mount(version(1), slow)
    waiting = threads.submit(status_of, mount)
    assert slow.started.wait(DEADLINE_S)

    def call_the_others() -> str:
        mount.reject("no", "5e1f")
        mount.evict()
        mount.clear_rejection()
        return mount.state

    state = threads.submit(call_the_others).result(DEADLINE_S)

    slow.released.set()
    assert ("idle", 200) == (state, waiting.result(DEADLINE_S))


def test_new_content_is_built_without_a_pause() -> None:
    """If a failed tenant's file changes, the next request builds the app without a pause."""
    builders = {"v1": failing(ValueError("no")), "v2": build}
    mount = Mount("acme", "/acme", lambda tenant: builders[tenant.app_name](tenant), clock=Clock())
    mount.accept(version(1))
    statuses = [status_of(mount), status_of(mount)]

    mount.accept(version(2))

    assert [503, 503, 200] == [*statuses, status_of(mount)]


def test_a_rejection_outlives_a_build_of_the_old_content() -> None:
    """If a change is rejected, operators still see the reason after the old version is rebuilt."""
    clock = Clock()
    mount = make_mount(version(1), recovering(ValueError("no")), clock=clock)
    mount.reject("acme.py:3: bad", "5e1f")
    statuses, reasons = [status_of(mount)], [mount.reason]
    clock.now_s += MAX_PAUSE_S

    statuses.append(status_of(mount))

    assert ([503, 200], "stale") == (statuses, mount.state)
    assert ["acme.py:3: bad"] * 2 == [*reasons, mount.reason]


def test_only_an_instance_without_requests_is_evicted() -> None:
    """An app with an open response is not evicted.

    An evicted app is built again on the next request.
    """
    built: list[str] = []
    mount = make_mount(make_tenant(), counting(built))
    body = mount(create_environ(base_url=ACME), lambda *_: lambda _: None)
    evicted = [mount.evict() is not None]
    body.close()  # type: ignore[attr-defined]

    evicted.append(mount.evict() is not None)

    states = [mount.state]
    assert 200 == status_of(mount)
    assert ([False, True], ["idle"], ["acme"] * 2) == (evicted, states, built)


def test_a_closed_mount_retires_an_instance_that_comes_too_late() -> None:
    """A closed mount also closes an app whose build ends later."""
    mount, late = make_mount(version(1), build), say_app_name(version(2))
    mount.close()

    retired = mount.swap(version(2), late)

    assert (True, True, None) == (retired is late, late.is_closed, mount.instance)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("", "idle"),
        ("accept", "idle"),
        ("reject", "failed"),
        ("accept build", "serving"),
        ("accept fail", "failed"),
        ("accept build reject", "stale"),
        ("accept build reject clear", "serving"),
        ("accept build reject swap", "serving"),
        ("accept fail reject", "failed"),
        ("accept build evict", "idle"),
        ("accept build maintenance-on", "maintenance"),
        ("reject maintenance-on", "maintenance"),
        ("accept-maintenance", "maintenance"),
        ("accept build maintenance-on maintenance-off", "serving"),
    ],
)
def test_the_states_of_a_mount(steps: str, expected: str) -> None:
    """A tenant's state depends on the tenant file, the build and the operator's commands."""
    builders: list[Builder] = [build]
    mount = Mount("acme", "/acme", lambda tenant: builders[-1](tenant), clock=Clock())  # noqa: PLW0108 - looks the builder up at each call
    acts: dict[str, Callable[[], object]] = {
        "accept": lambda: mount.accept(version(1)),
        "accept-maintenance": lambda: mount.accept(version(1, MAINTENANCE=True)),
        "reject": lambda: mount.reject("no", "5e1f"),
        "clear": mount.clear_rejection,
        "swap": lambda: mount.swap(version(2), build(version(2))),
        "build": mount.ensure_instance,
        "fail": lambda: (builders.append(failing(ValueError("no"))), mount.ensure_instance()),
        "evict": mount.evict,
        "maintenance-on": lambda: setattr(mount, "operator_maintenance", "Back at noon."),
        "maintenance-off": lambda: setattr(mount, "operator_maintenance", False),
    }

    for step in steps.split():
        acts[step]()

    assert expected == mount.state


def test_a_request_waits_until_its_file_is_validated() -> None:
    """A request waits for the validation of its tenant file, or gets 503 if this takes too long."""

    def accept(mount: Mount) -> None:
        mount.accept(version(1))

    validated = Mount("acme", "/acme", say_app_name, wait_for_validation=accept)
    unvalidated = Mount("acme", "/acme", say_app_name)

    answers = [get(mount)[:2] for mount in (validated, unvalidated)]

    assert (200, {}) == answers[0]
    assert (503, "1") == (answers[1][0], answers[1][1]["Retry-After"])
