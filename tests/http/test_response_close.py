"""When a response body is closed, each layer's callback runs exactly once."""

import threading
from collections.abc import Iterator

import pytest

from tenantry.http.response_close import on_close


class _Body:
    """A response body that records when it is closed."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"one", b"two"])

    def close(self) -> None:
        """Record that the body is closed."""
        self._events.append("body")


@pytest.fixture(name="events")
def _events() -> list[str]:
    return []


def test_callbacks_run_after_the_body_is_closed_innermost_first(events: list[str]) -> None:
    """When a response is closed, the app's body is closed first, and then callbacks run."""
    inner = on_close(_Body(events), lambda: events.append("inner"))
    outer = on_close(inner, lambda: events.append("outer"))
    parts = list(outer)
    outer.close()

    assert outer is inner
    assert ([b"one", b"two"], ["body", "inner", "outer"]) == (parts, events)


def test_a_second_close_does_nothing(events: list[str]) -> None:
    """Closing a response body a second time runs no callbacks again.

    Servers can close a body twice.
    """
    body = on_close(_Body(events), lambda: events.append("callback"))
    body.close()
    body.close()

    assert ["body", "callback"] == events


def test_two_threads_that_close_run_the_callbacks_once(events: list[str]) -> None:
    """If two threads close the same response body, the callbacks run once."""
    closing, go_on = threading.Event(), threading.Event()

    class _Slow(_Body):
        def close(self) -> None:
            closing.set()
            go_on.wait(10)

    body = on_close(_Slow(events), lambda: events.append("callback"))
    first = threading.Thread(target=body.close)
    first.start()
    closing.wait(10)
    body.close()
    before = list(events)
    go_on.set()
    first.join(10)

    assert ([], ["callback"]) == (before, events)


def test_callbacks_run_if_closing_the_body_fails(events: list[str]) -> None:
    """If closing the app's body raises, callbacks still run, and the server gets the exception."""

    class _Failing(_Body):
        def close(self) -> None:
            raise OSError("no more")

    body = on_close(_Failing(events), lambda: events.append("callback"))
    with pytest.raises(OSError, match="no more"):
        body.close()

    assert ["callback"] == events


def test_a_body_without_close_runs_the_callbacks(events: list[str]) -> None:
    """Callbacks also run for a response body that is a list, which has no `close`."""
    on_close([b"x"], lambda: events.append("callback")).close()

    assert ["callback"] == events
