"""Work that a layer does when the server closes the body of a response.

The facts about a request are final only after the `close()` of the response body (PEP 3333),
because the body can stream long after the call of the app. The server also closes the body if the
client disconnects, and may close the body twice. Werkzeug's `ClosingIterator` runs its callbacks
again at a second close, and skips its callbacks if the body's own `close()` fails.
"""

from collections.abc import Callable, Iterable, Iterator


def on_close(body: Iterable[bytes], callback: Callable[[], object]) -> "ClosingBody":
    """Return a response body that calls `callback` exactly once, after the body is closed.

    Nested layers share one `ClosingBody`, which calls the callbacks from the innermost layer
    outward.

    Args:
        body: the body of the response.
        callback: called without arguments. The callback must not raise, because later callbacks
            would not run.
    """
    closing = body if type(body) is ClosingBody else ClosingBody(body)
    closing.callbacks.append(callback)
    return closing


class ClosingBody:
    """The body of a response, with callbacks for the end of the body. Created by `on_close`."""

    __slots__ = ("_body", "_open", "callbacks")

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body
        self.callbacks: list[Callable[[], object]] = []
        self._open = [True]  # the first call of `close` removes the item; `pop` is atomic

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """Close the body, then call the callbacks. A second call of `close` does nothing."""
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
            self.callbacks.clear()  # breaks a reference cycle from the body through the callbacks
