"""The door: what the server's main loop asks about a request before it spends a thread on it.

An app that has one (`Host.door`) gives it to a server that asks; with another server the layers of
each instance decide the same, in a thread. Everything here is a look-up.
"""

from collections.abc import Callable

from core.heads import place
from core.mounts import Mount
from core.problem import ProblemAnswer
from core.share import FairShare
from core.slots import BUSY

Refusal = tuple[ProblemAnswer, list[tuple[str, str]]]
NoteTurnedAway = Callable[[str, bytes, bytes], None]


class Door:
    """For one thread, that of the main loop.

    Args:
        share: the rule of this process.
        at: the mount at a prefix.
        is_operators: whether a listener, by its address, is the operators' own.
        refusal: what every request of a tenant gets now, with its headers; None: it may come in.
        note_turned_away: told of each request that was refused here, and so reaches no layer:
            its tenant, its head and the answer.
    """

    busy = BUSY
    """Answers who has waited for a slot long enough."""

    def __init__(
        self,
        share: FairShare,
        at: Callable[[str], Mount | None],
        is_operators: Callable[[object], bool],
        refusal: Callable[[str], Refusal | None] = lambda _: None,
        note_turned_away: NoteTurnedAway = lambda *_: None,
    ) -> None:
        self.share = share
        self.is_operators = is_operators
        self.refusal = refusal
        self.note_turned_away = note_turned_away
        self._at = at

    def whose(self, head: bytes) -> str | None:
        """Return the tenant that a request is for, as far as its head surely tells."""
        mount = place(head, self._at)
        return None if mount is None else mount.name
