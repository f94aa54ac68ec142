"""Instances: leases, retiring and closing, on WSGI functions of a few lines."""

import gc
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

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


def quiet(_: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Answer with two chunks."""
    start_response("200 OK", [])
    return [b"one", b"two"]


def instance_of(app: "WSGIApplication" = quiet) -> tuple[Instance, Closing]:
    """Return an instance, and what counts its ends."""
    closing = Closing()
    return Instance(app, closing), closing


def answer(instance: Instance) -> Iterable[bytes]:
    """Return the body of one request under a lease."""
    assert instance.lease()
    return instance.answer(create_environ(), lambda *_: lambda _: None)


def test_leases_are_counted() -> None:
    """Each lease counts until it is given back."""
    instance, closing = instance_of()
    counts = [instance.lease() and instance.leases for _ in range(3)]

    instance.release()

    assert ([1, 2, 3], 2, 0) == (counts, instance.leases, closing.times)


def test_retired_without_leases_it_closes_at_once() -> None:
    """Nothing is in flight, so nothing is waited for; retiring it again does nothing."""
    instance, closing = instance_of()

    instance.retire()
    instance.retire()

    assert (1, True) == (closing.times, instance.is_closed)


def test_retired_it_closes_with_the_last_lease() -> None:
    """Requests in flight finish on it."""
    instance, closing = instance_of()
    instance.lease()
    instance.lease()

    instance.retire()

    times = [closing.times]
    for _ in range(2):
        instance.release()
        times.append(closing.times)
    assert [0, 0, 1] == times


def test_a_lease_after_it_was_retired_is_refused() -> None:
    """Whoever comes late looks for the next instance."""
    instance, _ = instance_of()
    instance.lease()
    instance.retire()

    is_leased = instance.lease()

    assert (False, 1) == (is_leased, instance.leases)


def test_the_close_of_a_body_gives_the_lease_back_once() -> None:
    """Servers and middleware may close a body twice: a plain counter went to -1."""
    instance, _ = instance_of()
    body = answer(instance)
    assert instance.lease()

    body.close()  # type: ignore[attr-defined]
    body.close()  # type: ignore[attr-defined]

    assert 1 == instance.leases


def test_a_body_that_streams_keeps_it_open() -> None:
    """The lease ends with the body's `close`, not with the call of the app."""
    instance, closing = instance_of()
    body = answer(instance)
    instance.retire()
    chunks = iter(body)

    seen = [next(chunks), next(chunks), closing.times]

    body.close()  # type: ignore[attr-defined]
    assert ([b"one", b"two", 0], 1) == (seen, closing.times)


def test_a_body_is_closed_before_its_lease_ends() -> None:
    """The app's own clean-up runs while the app is open, and whatever it raises."""
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
        body.close()  # type: ignore[attr-defined]

    assert ["body", "instance"] == events


def test_an_app_that_raises_gives_the_lease_back() -> None:
    """There is no body then that could be closed."""

    def fail(_: "WSGIEnvironment", __: "StartResponse") -> Iterable[bytes]:
        raise SystemExit(3)

    instance, _ = instance_of(fail)

    with pytest.raises(SystemExit):
        answer(instance)

    assert 0 == instance.leases


def test_cut_closes_now_and_says_what_was_in_flight() -> None:
    """What comes back later changes nothing."""
    instance, closing = instance_of()
    body = answer(instance)
    instance.retire()

    cut = [instance.cut(), instance.cut()]

    body.close()  # type: ignore[attr-defined]
    assert ([1, 1], 1, 0) == (cut, closing.times, instance.leases)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)], ids=repr)
def test_a_close_that_raises_is_logged(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Who ends the last request, or the tenant, is not to blame."""

    def fail() -> None:
        raise error

    instance = Instance(quiet, fail)

    instance.retire()

    [record] = caplog.records
    assert ("instance.close_failed", True) == (record.getMessage(), instance.is_closed)


def test_many_threads_close_it_once() -> None:
    """While sixteen threads lease and release, it is retired: closed once, when all are done."""
    instance, closing = instance_of()
    together = threading.Barrier(17)

    def lease_until_refused() -> int:
        together.wait(DEADLINE_S)
        count = 0
        while instance.lease():
            count += 1
            seen = closing.times
            instance.release()
            assert 0 == seen
        return count

    with ThreadPoolExecutor(17) as threads:
        counts = [threads.submit(lease_until_refused) for _ in range(16)]
        threads.submit(lambda: (together.wait(DEADLINE_S), instance.retire())).result(DEADLINE_S)
        assert all(count.result(DEADLINE_S) >= 0 for count in counts)

    assert (1, 0) == (closing.times, instance.leases)


def test_it_is_used_until_its_last_request_ends() -> None:
    """By this the least recently used is told."""
    now = [10.0]
    instance = Instance(quiet, Closing(), clock=lambda: now[0])
    used: list[float] = [instance.used_at]
    instance.lease()
    now[0] = 12.0

    instance.release()

    assert [10.0, 12.0] == [*used, instance.used_at]


def test_a_closed_instance_keeps_nothing_of_its_app() -> None:
    """What it was closed with goes with it; the app itself is only remembered weakly."""

    class App:
        def __call__(self, *_: object) -> Iterable[bytes]:
            return []

    app = App()
    close: Callable[[], None] = [app].clear
    instance = Instance(app, close, app)
    remembered = instance.app
    assert remembered is not None

    instance.retire()

    del app, close, instance
    gc.collect()
    assert remembered() is None
