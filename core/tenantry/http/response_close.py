"""The end of a request: what a layer does when the server closes the response's body. Knows WSGI.

Nothing of a request is final before that `close()` (PEP 3333), for a body may stream long after
the app was called; it comes when the client has left, too, and may come twice.
"""

from collections.abc import Callable, Iterable, Iterator


def on_close(body: Iterable[bytes], end: Callable[[], object]) -> "Ending":
    """Return a body that calls `end` when it has been closed: once, however often that is.

    Where layers stand around each other it is one body for all of them, and their ends are called
    in the order in which the layers are left: the innermost first.

    Args:
        body: of the response.
        end: raises nothing; what comes after it would be lost.
    """
    ending = body if type(body) is Ending else Ending(body)
    ending.ends.append(end)
    return ending


class Ending:
    """A response's body, and what its end is awaited for. Made by `on_close`."""

    __slots__ = ("_body", "_open", "ends")

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body
        self.ends: list[Callable[[], object]] = []
        self._open = [self.ends]  # taken by who closes first: `pop` is atomic

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """Close the body, then tell all who await it."""
        try:
            ends = self._open.pop()
        except IndexError:
            return
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            for end in ends:
                end()
            ends.clear()  # they know what knows this body
