"""Work that a layer does when the server closes the body of a response.

The facts about a request are final only after the `close()` of the response body (PEP 3333),
because the body can stream long after the call of the app. The server also closes the body if the
client disconnects, and may close the body twice. Werkzeug's `ClosingIterator` runs its callbacks
again at a second close, and skips its callbacks if the body's own `close()` fails.
"""

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator


class ResponseCutError(ConnectionResetError):
    """Tells the server to close the connection, because the response cannot be completed.

    gunicorn and waitress close the connection on a `ConnectionResetError` without a second stack
    trace in the log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(errno.ECONNRESET, reason)


def on_close(body: Iterable[bytes], callback: Callable[[], object]) -> "ClosingBody":
    """Return a response body that calls `callback` exactly once, after the body is closed.

    Nested layers share one `ClosingBody`, which calls the callbacks from the innermost layer
    outward.

    Args:
        body: the body of the response.
        callback: called without arguments. The callback must not raise, because later callbacks
            would not run.
    """
    closing = body if isinstance(body, ClosingBody) else _WrappedBody(body)
    closing.callbacks.append(callback)
    return closing


class ClosingBody(ABC):
    """The body of a response, with callbacks for the end of the body. `close` is idempotent."""

    __slots__ = ("_open", "callbacks")

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], object]] = []
        self._open = [True]  # the first call of `close` removes the item; `pop` is atomic

    @abstractmethod
    def __iter__(self) -> Iterator[bytes]: ...

    @abstractmethod
    def close_body(self) -> None:
        """Close the resources of the body. Called once."""

    def close(self) -> None:
        """Close the body, then call the callbacks. A second call of `close` does nothing."""
        try:
            self._open.pop()
        except IndexError:
            return
        try:
            self.close_body()
        finally:
            for callback in self.callbacks:
                callback()
            self.callbacks.clear()  # break a reference cycle from the body through the callbacks


class _WrappedBody(ClosingBody):
    """Adds callbacks to the body of a WSGI app."""

    __slots__ = ("_body",)

    def __init__(self, body: Iterable[bytes]) -> None:
        super().__init__()
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close_body(self) -> None:
        """Close the body of the app."""
        close = getattr(self._body, "close", None)
        if close is not None:
            close()
