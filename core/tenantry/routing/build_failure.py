"""Failed builds: the reason that operators see, and the pause before the next attempt."""

from dataclasses import dataclass
from typing import Self

from tenantry.observability.redaction import one_line_in_scope

FIRST_PAUSE_S = 1.0
"""Pause after the first failed build: about the time in which a restarted database is back."""

MAX_PAUSE_S = 60.0
"""Pauses double up to this, so a repaired dependency is noticed within a minute."""


@dataclass(frozen=True, slots=True)
class BuildFailure:
    """The latest of one or more consecutive failed builds of the same content."""

    reason: str
    """The text of the exception on one line, without secrets."""
    count: int
    retry_at: float
    """When the next build may start, in seconds of the clock that `of` was given."""

    @classmethod
    def of(cls, error: BaseException, previous: "BuildFailure | None", now: float) -> Self:
        """Return the failure that follows `previous`, with twice its pause."""
        count = 1 if previous is None else previous.count + 1
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(count - 1, 10), MAX_PAUSE_S)
        return cls(one_line_in_scope(error), count, now + pause_s)
