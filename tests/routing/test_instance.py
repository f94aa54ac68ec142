"""Instances: leases, retiring and closing, on WSGI apps of a few lines."""

import gc
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.test import create_environ

from servers import DEADLINE_S
from tenantry.routing.instance import Instance

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Closing:
    """Counts how often an instance is closed."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        """Count."""
        self.times += 1


def two_chunks(_: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Answer with two chunks."""
    start_response("200 OK", [])
    return [b"one", b"two"]


def instance_of(app: "WSGIApplication" = two_chunks) -> tuple[Instance, Closing]:
    """Return an instance, and an object that counts the calls of the instance's close function."""
    closing = Closing()
    return Instance(app, closing), closing


def answer(instance: Instance) -> Any:
    """Return the body of one response. Until the body is closed, the request holds a lease."""
    body = instance.answer(create_environ(), lambda *_: lambda _: None)
    assert body is not None
    return body


def test_each_open_body_holds_a_lease() -> None:
    """Closing the body ends the lease."""
    instance, closing = instance_of()
    bodies = [answer(instance) for _ in range(3)]
    leases = [instance.leases]

    bodies[0].close()

    assert ([3, 2], 0) == ([*leases, instance.leases], closing.times)


def test_retired_without_leases_it_closes_at_once() -> None:
    """Retiring an instance a second time has no effect."""
    instance, closing = instance_of()

    instance.retire()
    instance.retire()

    assert (1, True) == (closing.times, instance.is_closed)


def test_retired_it_closes_with_the_last_lease() -> None:
    """Requests in flight finish on a retired instance."""
    instance, closing = instance_of()
    bodies = [answer(instance), answer(instance)]

    instance.retire()

    times = [closing.times]
    for body in bodies:
        body.close()
        times.append(closing.times)
    assert [0, 0, 1] == times


def test_a_retired_instance_answers_nothing() -> None:
    """A request that comes late must look for the next instance."""
    instance, _ = instance_of()
    body = answer(instance)
    instance.retire()

    late = instance.answer(create_environ(), lambda *_: lambda _: None)

    assert (None, 1) == (late, instance.leases)
    body.close()


def test_a_body_that_is_closed_twice_ends_one_lease() -> None:
    """Servers and middleware may close a body twice: a plain counter went to -1."""
    instance, _ = instance_of()
    bodies = [answer(instance), answer(instance)]

    bodies[0].close()
    bodies[0].close()

    assert 1 == instance.leases


def test_a_streaming_body_keeps_the_instance_open() -> None:
    """The lease ends with the body's `close`, not with the call of the app."""
    instance, closing = instance_of()
    body = answer(instance)
    instance.retire()
    chunks = iter(body)

    seen = [next(chunks), next(chunks), closing.times]

    body.close()
    assert ([b"one", b"two", 0], 1) == (seen, closing.times)


def test_a_body_is_closed_before_its_lease_ends() -> None:
    """A body is closed before the lease ends. The lease ends even if `close` of the body raises."""
    events: list[str] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"one"])

        def close(self) -> None:
            events.append("body")
            raise ValueError("no")

    instance = Instance(lambda *_: Body(), lambda: events.append("instance"))
    body = answer(instance)
    instance.retire()

    with pytest.raises(ValueError, match="no"):
        body.close()

    assert ["body", "instance"] == events


def test_an_app_that_raises_ends_its_lease() -> None:
    """An app that raises ends the lease at once, without a body."""

    def fail(_: "WSGIEnvironment", __: "StartResponse") -> Iterable[bytes]:
        raise SystemExit(3)

    instance, _ = instance_of(fail)

    with pytest.raises(SystemExit):
        answer(instance)

    assert 0 == instance.leases


def test_close_now_returns_how_many_requests_were_in_flight() -> None:
    """The later end of cut requests changes no count."""
    instance, closing = instance_of()
    body = answer(instance)
    instance.retire()

    in_flight = [instance.close_now(), instance.close_now()]

    body.close()
    assert ([1, 1], 1, 0) == (in_flight, closing.times, instance.leases)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)], ids=repr)
def test_an_exception_in_close_is_logged(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in an app's `close` is logged, and does not reach the last request."""

    def fail() -> None:
        raise error

    instance = Instance(two_chunks, fail)

    instance.retire()

    [record] = caplog.records
    assert ("instance.close_failed", True) == (record.getMessage(), instance.is_closed)


def test_concurrent_requests_close_it_once() -> None:
    """Sixteen threads send requests while the instance is retired.

    The instance closes when the last request has ended.
    """
    instance, closing = instance_of()
    together = threading.Barrier(17)

    def ask_until_retired() -> None:
        together.wait(DEADLINE_S)
        while (body := instance.answer(create_environ(), lambda *_: lambda _: None)) is not None:
            seen = closing.times
            body.close()  # type: ignore[attr-defined]
            assert 0 == seen

    with ThreadPoolExecutor(17) as threads:
        asking = [threads.submit(ask_until_retired) for _ in range(16)]
        threads.submit(lambda: (together.wait(DEADLINE_S), instance.retire())).result(DEADLINE_S)
        for each in asking:
            each.result(DEADLINE_S)

    assert (1, 0) == (closing.times, instance.leases)


def test_it_was_used_when_its_last_request_ended() -> None:
    """An instance's time of last use is the end of the last request, which eviction compares."""
    now = [10.0]
    instance = Instance(two_chunks, Closing(), clock=lambda: now[0])
    used_at = [instance.used_at]
    body = answer(instance)
    now[0] = 12.0

    body.close()

    assert [10.0, 12.0] == [*used_at, instance.used_at]


def test_a_closed_instance_does_not_keep_its_app_alive() -> None:
    """A closed instance drops the close function, and has only a weak reference to the app."""

    class App:
        def __call__(self, *_: object) -> Iterable[bytes]:
            return []

    app = App()
    close: Callable[[], None] = [app].clear
    instance = Instance(app, close, app)
    reference = instance.app
    assert reference is not None

    instance.retire()

    del app, close, instance
    gc.collect()
    assert reference() is None
