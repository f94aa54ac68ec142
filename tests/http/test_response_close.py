"""What is done when the server closes a response's body: once, and in the order of the layers."""

import threading
from collections.abc import Iterator

import pytest

from tenantry.http.response_close import on_close


class _Body:
    """A body that notes that it was closed."""

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"one", b"two"])

    def close(self) -> None:
        """Note it."""
        self._said.append("body")


@pytest.fixture(name="said")
def _said() -> list[str]:
    return []


def test_the_ends_come_after_the_body_the_innermost_first(said: list[str]) -> None:
    """However many layers there are, it is one body around the app's."""
    inner = on_close(_Body(said), lambda: said.append("inner"))
    outer = on_close(inner, lambda: said.append("outer"))
    parts = list(outer)
    outer.close()

    assert outer is inner
    assert ([b"one", b"two"], ["body", "inner", "outer"]) == (parts, said)


def test_closed_twice_it_ends_once(said: list[str]) -> None:
    """Servers do that; a plain counter of slots went to -1."""
    body = on_close(_Body(said), lambda: said.append("end"))
    body.close()
    body.close()

    assert ["body", "end"] == said


def test_closed_by_two_threads_it_ends_once(said: list[str]) -> None:
    """While the first one is still closing the body, the second finds nothing to do."""
    closing, go_on = threading.Event(), threading.Event()

    class _Slow(_Body):
        def close(self) -> None:
            closing.set()
            go_on.wait(10)

    body = on_close(_Slow(said), lambda: said.append("end"))
    first = threading.Thread(target=body.close)
    first.start()
    closing.wait(10)
    body.close()
    before = list(said)
    go_on.set()
    first.join(10)

    assert ([], ["end"]) == (before, said)


def test_a_body_that_fails_to_close_ends_all_the_same(said: list[str]) -> None:
    """What was taken for the request is given back, and the server hears of the failure."""

    class _Failing(_Body):
        def close(self) -> None:
            raise OSError("no more")

    body = on_close(_Failing(said), lambda: said.append("end"))
    with pytest.raises(OSError, match="no more"):
        body.close()

    assert ["end"] == said


def test_a_body_without_close_ends_too(said: list[str]) -> None:
    """A list is a body."""
    on_close([b"x"], lambda: said.append("end")).close()

    assert ["end"] == said
