"""After a failed build, the host keeps the reason and pauses before the next attempt."""

import pytest

from tenantry.errors import EndpointError
from tenantry.routing.build_failure import FIRST_PAUSE_S, MAX_PAUSE_S, BuildFailure

SEE_LOG = "; see the traceback in the log."


class SilentError(Exception):
    """An exception whose `__str__` raises."""

    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no\n driver"), f"ValueError: no driver{SEE_LOG}"),
        (EndpointError("shop", "fix the endpoint."), "fix the endpoint."),
        (KeyError(), f"KeyError{SEE_LOG}"),
        (SilentError(), f"SilentError{SEE_LOG}"),
    ],
)
def test_the_reason_is_the_type_and_text_of_the_exception(error: Exception, reason: str) -> None:
    """The reason for a failed build is one line with the exception's type and text."""
    assert reason == BuildFailure.of(error, None, now=0.0).reason


def test_pauses_double_up_to_a_minute() -> None:
    """After each failed build, the pause before the next attempt doubles, up to a minute."""
    failure, pauses = None, []
    for now in range(2000):
        failure = BuildFailure.of(ValueError(), failure, float(now))
        pauses.append(failure.retry_at - now)

    assert [1, 2, 4, 8, 16, 32, 60] == pauses[:7]
    assert {MAX_PAUSE_S} == set(pauses[6:])
    assert (1.0, 60.0) == (FIRST_PAUSE_S, MAX_PAUSE_S)
