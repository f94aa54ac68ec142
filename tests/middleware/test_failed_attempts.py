"""The limit for requests without a valid key."""

import pytest

from tenantry.middleware.failed_attempts import (
    MAX_ADDRESSES,
    MAX_ATTEMPTS,
    WINDOW_S,
    FailedAttempts,
)


def test_attempts_are_free_again_after_the_window() -> None:
    """Above the limit, an address waits until one minute after its first attempt."""
    now = [100.0]
    attempts = FailedAttempts(lambda: now[0])
    waits = [attempts.note("acme", "192.0.2.1") for _ in range(MAX_ATTEMPTS)]
    now[0] += WINDOW_S - 10.5

    over = attempts.note("acme", "192.0.2.1")
    now[0] += 10.5

    assert ({0}, 11, 0) == ({*waits}, over, attempts.note("acme", "192.0.2.1"))


@pytest.mark.parametrize(
    ("tenant", "address", "is_over"),
    [
        ("acme", "2001:db8:0:1::2", True),
        ("acme", "2001:db8:0:2::1", False),
        ("globex", "2001:db8:0:1::1", False),
        ("acme", "192.0.2.1", False),
        ("acme", "", False),
        ("acme", "not:an:address", False),
    ],
)
def test_each_address_has_a_bound_of_its_own(tenant: str, address: str, *, is_over: bool) -> None:
    """The limit is per tenant and address, and a /64 network counts as one address."""
    attempts = FailedAttempts()
    for _ in range(MAX_ATTEMPTS):
        attempts.note("acme", "2001:db8:0:1::1")

    assert is_over == bool(attempts.note(tenant, address))


def test_the_number_of_addresses_in_memory_is_bounded() -> None:
    """Above the maximum number of addresses, the one with the oldest attempt is removed."""
    attempts = FailedAttempts()
    for _ in range(MAX_ATTEMPTS):
        attempts.note("acme", "first")
    for number in range(MAX_ADDRESSES):
        attempts.note("acme", str(number))

    assert 0 == attempts.note("acme", "first")
