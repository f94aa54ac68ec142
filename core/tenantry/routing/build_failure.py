"""Failed builds, with a reason for operators and a pause before the next attempt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from tenantry.endpoints.loading import describe_failure
from tenantry.errors import TenantryError

FIRST_PAUSE_S = 1.0
"""Seconds to pause after the first failed build, so that a restarted database can become
available."""

MAX_PAUSE_S = 60.0
"""Maximum seconds between two builds, so that the host notices a repaired dependency within a
minute. Each failed build doubles the pause."""


@dataclass(frozen=True, slots=True)
class BuildFailure:
    """The latest of one or more consecutive failed builds of the same version of a tenant file."""

    reason: str
    """The error and where it occurred in the code, on one line, without secrets."""
    count: int
    retry_at: float
    """Time at which the next build may start, in monotonic seconds."""

    @classmethod
    def of(
        cls,
        error: BaseException,
        previous: "BuildFailure | None",
        now: float,
        endpoints: Sequence[str] = (),
    ) -> Self:
        """Return the failure that follows the failure `previous`, with twice the pause.

        If code of one of the `endpoints` raised the error, the reason names the line.
        """
        count = 1 if previous is None else previous.count + 1
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(count - 1, 10), MAX_PAUSE_S)
        reason = describe_failure(error, endpoints)
        if not isinstance(error, TenantryError):  # the text of a `TenantryError` says what to do
            reason += "; see the traceback in the log."
        return cls(reason, count, now + pause_s)
