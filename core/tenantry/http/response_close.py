"""Work that a layer does when the server closes the body of a response.

Nothing about a request is final before that `close()` (PEP 3333): the body can stream long after
the app was called. The server also closes the body if the client disconnects, and may do so twice.
Werkzeug's `ClosingIterator` does not cover this: it runs its callbacks again at a second close, and
skips them if the body's own `close()` fails.
"""

from collections.abc import Callable, Iterable, Iterator


def on_close(body: Iterable[bytes], callback: Callable[[], object]) -> "ClosingBody":
    """Return a body that calls `callback` exactly once, after it is closed.

    Nested layers share one `ClosingBody`. It calls their callbacks from the innermost layer
    outward.

    Args:
        body: the body of the response.
        callback: must not raise, because later callbacks would not run.
    """
    closing = body if type(body) is ClosingBody else ClosingBody(body)
    closing.callbacks.append(callback)
    return closing


class ClosingBody:
    """The body of a response, with callbacks for its end. `on_close` makes it."""

    __slots__ = ("_body", "_open", "callbacks")

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body
        self.callbacks: list[Callable[[], object]] = []
        self._open = [True]  # the first call of `close` takes it; `pop` is atomic

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """Close the body, then call the callbacks. A second call does nothing."""
        try:
            self._open.pop()
        except IndexError:
            return
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            for callback in self.callbacks:
                callback()
            self.callbacks.clear()  # breaks the cycle from this body through the callbacks
