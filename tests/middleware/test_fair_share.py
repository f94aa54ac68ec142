"""The fair share: how many requests a tenant may have in flight, for given numbers."""

import math

import pytest

from tenantry.middleware.fair_share import FORGET_AFTER, FairShare


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time that the test has set on the clock."""
        return self.now


@pytest.mark.parametrize(("noisy", "each"), [(1, 4), (2, 3), (3, 2), (7, 1)])
def test_noisy_tenants_leave_room_for_a_quiet_one(noisy: int, each: int) -> None:
    """When up to 7 tenants take all that they get of 8 threads, a quiet tenant is admitted."""
    share = FairShare(8)
    own = dict.fromkeys(range(noisy), 0)
    has_got = True
    while has_got:
        has_got = False
        for tenant in own:
            busy = sum(count > 0 for count in own.values())
            if share.admits(str(tenant), own[tenant], sum(own.values()), busy):
                own[tenant] += 1
                has_got = True

    assert each == max(own.values())
    assert share.admits("quiet", 0, sum(own.values()), noisy)


def test_all_requests_are_admitted_if_the_thread_count_is_unknown() -> None:
    """Without a known number of threads, which only gunicorn states, all requests are admitted."""
    assert FairShare(None).admits("acme", 10_000, 10_000, 100)


def test_the_number_of_busy_tenants_limits_first_requests() -> None:
    """A tenant's first request depends on the number of active tenants, not of their requests."""
    share = FairShare(8)

    assert [True, True, False] == [share.admits("acme", 0, *held) for held in
                                   ((8, 7), (11, 7), (8, 8))]  # fmt: skip


def test_further_requests_need_free_threads() -> None:
    """A further request needs more free threads than the tenant has requests."""
    share = FairShare(8)

    assert [True, False, False] == [share.admits("acme", *held) for held in
                                    ((3, 4, 2), (3, 5, 2), (1, 8, 8))]  # fmt: skip


def test_a_cpu_heavy_tenant_gets_one_slot_beside_other_traffic() -> None:
    """A tenant that uses most of the CPU gets one slot until the CPU use or other traffic stops."""
    clock = Clock()
    share = FairShare(8, clock=clock)
    share.note_used("acme", 0.8)
    alone = share.admits("acme", 1, 1, 1)
    share.note_used("globex", 0.01)
    beside = [share.admits(*held) for held in
              (("acme", 0, 0, 0), ("acme", 1, 1, 1), ("globex", 1, 1, 1))]  # fmt: skip
    clock.now += 2.0
    later = share.admits("acme", 1, 1, 1)

    assert (True, [True, False, True], True) == (alone, beside, later)


@pytest.mark.parametrize(("others_s", "rest_s"), [(0.5, 0.2), (0.1, 0.08)])
def test_a_cpu_heavy_tenant_pauses_between_requests(others_s: float, rest_s: float) -> None:
    """A CPU-heavy tenant pauses for the duration of its last request, or less under little load."""
    clock = Clock()
    share = FairShare(8, clock=clock)
    share.note_used("globex", others_s)
    share.note_used("acme", 0.4 if others_s < 0.5 else 0.5, took_s=0.2)

    before = share.rest_s("acme"), share.admits("acme", 0, 0, 0)
    clock.now += 0.2
    after = share.rest_s("acme"), share.admits("acme", 0, 0, 0)

    assert ((rest_s, False), (0.0, True)) == ((round(before[0], 6), before[1]), after)


def test_a_cpu_heavy_tenant_waits_while_as_many_tenants_as_threads_are_busy() -> None:
    """A CPU-heavy tenant's one slot is subject to the same rule as any first request."""
    clock = Clock()
    share = FairShare(8, clock=clock)
    share.note_used("acme", 0.8)
    share.note_used("globex", 0.01)

    assert [True, False] == [share.admits("acme", 0, 7, busy) for busy in (7, 8)]


def test_many_short_requests_are_not_cpu_heavy() -> None:
    """A popular tenant with 1 ms of CPU time per request keeps all slots."""
    share = FairShare(8, clock=Clock())
    share.note_used("globex", 0.1)
    for _ in range(800):
        share.note_used("acme", 0.001)

    assert share.admits("acme", 1, 1, 1)


def test_processor_time_decays() -> None:
    """A constant rate of processor time is a constant share over any duration."""
    clock = Clock()
    share = FairShare(8, clock=clock)
    share.note_used("globex", 1000.0)
    clock.now += 100.0
    for _ in range(1000):
        clock.now += 1.0
        share.note_used("acme", 0.2)

    assert share._use["acme"][0] == pytest.approx(0.2 / (1 - math.exp(-1)))


def test_a_running_request_already_counts_as_cpu_heavy() -> None:
    """Processor time counts while a request runs, and is not counted again at the request's end."""
    clock = Clock()
    share = FairShare(8, clock=clock)
    share.note_used("globex", 0.05)
    before = share.admits("acme", 3, 3, 1)
    share.note_running("acme", 0.25)
    during = share.admits("acme", 3, 3, 1)
    share.note_used("acme", 0.3, 0.5, noted_s=0.25)

    assert (True, False, 0.3) == (before, during, pytest.approx(share._use["acme"][0]))


def test_idle_tenants_are_forgotten() -> None:
    """Records of idle tenants are deleted, so memory use does not grow with all tenants."""
    clock = Clock()
    share = FairShare(8, clock=clock)
    for number in range(FORGET_AFTER):
        share.note_used(str(number), 0.001)
    clock.now += 60.0

    share.note_used("acme", 0.1)

    assert {"acme"} == set(share._use)
