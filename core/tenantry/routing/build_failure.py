"""Failed builds: the reason that operators see, and the pause before the next attempt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from tenantry.endpoints.loading import describe_failure
from tenantry.errors import TenantryError

FIRST_PAUSE_S = 1.0
"""Pause after the first failed build: about the time in which a restarted database is back."""

MAX_PAUSE_S = 60.0
"""Pauses double up to this, so a repaired dependency is noticed within a minute."""


@dataclass(frozen=True, slots=True)
class BuildFailure:
    """The latest of one or more consecutive failed builds of the same content."""

    reason: str
    """What failed and where, on one line, without secrets."""
    count: int
    retry_at: float
    """When the next build may start, in seconds of the clock that `of` was given."""

    @classmethod
    def of(
        cls,
        error: BaseException,
        previous: "BuildFailure | None",
        now: float,
        endpoints: Sequence[str] = (),
    ) -> Self:
        """Return the failure that follows `previous`, with twice its pause.

        The reason names the line if the code of one of the `endpoints` raised the error.
        """
        count = 1 if previous is None else previous.count + 1
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(count - 1, 10), MAX_PAUSE_S)
        reason = describe_failure(error, endpoints)
        if not isinstance(error, TenantryError):  # whose text says what to do
            reason += "; see the traceback in the log."
        return cls(reason, count, now + pause_s)
