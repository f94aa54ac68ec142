"""When an app is replaced, the old app closes as soon as its last request ends."""

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
    """A callable that counts how often an app instance was closed."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        """Count the call."""
        self.times += 1


def two_chunks(_: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Answer with two chunks."""
    start_response("200 OK", [])
    return [b"one", b"two"]


def instance_of(app: "WSGIApplication" = two_chunks) -> tuple[Instance, Closing]:
    """Return an app instance, and an object that counts how often the instance was closed."""
    closing = Closing()
    return Instance(app, closing), closing


def answer(instance: Instance) -> Any:
    """Return the body of one response.

    The request stays open until the caller closes the body.
    """
    body = instance.answer(create_environ(), lambda *_: lambda _: None)
    assert body is not None
    return body


def test_each_open_body_holds_a_lease() -> None:
    """A request counts as open until its response body is closed."""
    instance, closing = instance_of()
    bodies = [answer(instance) for _ in range(3)]
    leases = [instance.leases]

    bodies[0].close()

    assert ([3, 2], 0) == ([*leases, instance.leases], closing.times)


def test_retired_without_leases_it_closes_at_once() -> None:
    """An app without requests closes immediately when it is replaced."""
    instance, closing = instance_of()

    instance.retire()
    instance.retire()

    assert (1, True) == (closing.times, instance.is_closed)


def test_retired_it_closes_with_the_last_lease() -> None:
    """An old app closes when its last request ends."""
    instance, closing = instance_of()
    bodies = [answer(instance), answer(instance)]

    instance.retire()

    times = [closing.times]
    for body in bodies:
        body.close()
        times.append(closing.times)
    assert [0, 0, 1] == times


def test_a_retired_instance_answers_nothing() -> None:
    """An old app rejects new requests, which then use the new app."""
    instance, _ = instance_of()
    body = answer(instance)
    instance.retire()

    late = instance.answer(create_environ(), lambda *_: lambda _: None)

    assert (None, 1) == (late, instance.leases)
    body.close()


def test_a_body_that_is_closed_twice_ends_one_lease() -> None:
    """Closing a response body twice ends only one request.

    Servers and middleware may close a body twice.
    """
    instance, _ = instance_of()
    bodies = [answer(instance), answer(instance)]

    bodies[0].close()
    bodies[0].close()

    assert 1 == instance.leases


def test_a_streaming_body_keeps_the_instance_open() -> None:
    """An app stays open while it streams a response, even after the view has returned."""
    instance, closing = instance_of()
    body = answer(instance)
    instance.retire()
    chunks = iter(body)

    seen = [next(chunks), next(chunks), closing.times]

    body.close()
    assert ([b"one", b"two", 0], 1) == (seen, closing.times)


def test_a_body_is_closed_before_its_lease_ends() -> None:
    """An old app closes after its last response body, even if closing the body raises."""
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
    """If an app raises, its request ends, although there is no response body to close."""

    def fail(_: "WSGIEnvironment", __: "StartResponse") -> Iterable[bytes]:
        raise SystemExit(3)

    instance, _ = instance_of(fail)

    with pytest.raises(SystemExit):
        answer(instance)

    assert 0 == instance.leases


def test_close_now_returns_how_many_requests_were_in_flight() -> None:
    """Closing an app by force returns the number of requests in flight."""
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
    """If closing an app raises, the exception is logged and does not reach a client."""

    def fail() -> None:
        raise error

    instance = Instance(two_chunks, fail)

    instance.retire()

    [record] = caplog.records
    assert ("instance.close_failed", True) == (record.getMessage(), instance.is_closed)


def test_concurrent_requests_close_it_once() -> None:
    """If sixteen threads send requests while an app is replaced, the old app closes once.

    The app closes when the last request has ended.
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
    """The time of last use of an app is the end of its last request."""
    now = [10.0]
    instance = Instance(two_chunks, Closing(), clock=lambda: now[0])
    used_at = [instance.used_at]
    body = answer(instance)
    now[0] = 12.0

    body.close()

    assert [10.0, 12.0] == [*used_at, instance.used_at]


def test_a_closed_instance_does_not_keep_its_app_alive() -> None:
    """A closed app is freed from memory."""

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
