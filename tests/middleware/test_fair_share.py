"""The fair share: who may have another request in flight, asked with numbers."""

import math

import pytest

from tenantry.middleware.fair_share import FORGET_AFTER, FairShare


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        """Return its time."""
        return self.now


@pytest.mark.parametrize(("noisy", "each"), [(1, 4), (2, 3), (3, 2), (7, 1)])
def test_noisy_tenants_leave_a_thread_to_who_has_none(noisy: int, each: int) -> None:
    """However many of up to 7 take what they can of 8 threads, a quiet one still gets in."""
    share = FairShare(8)
    own = dict.fromkeys(range(noisy), 0)
    has_got = True
    while has_got:
        has_got = False
        for tenant in own:
            if share.admits(str(tenant), own[tenant], sum(own.values())):
                own[tenant] += 1
                has_got = True

    assert each == max(own.values())
    assert share.admits("quiet", 0, sum(own.values()))


def test_nobody_is_refused_where_the_threads_are_not_known() -> None:
    """Only gunicorn tells how many there are."""
    assert FairShare(None).admits("acme", 10_000, 10_000)


def test_nobody_gets_a_thread_that_is_not_there() -> None:
    """All are taken: who has none waits, too."""
    assert not FairShare(8).admits("acme", 0, 8)


def test_a_tenant_that_computes_gets_one_slot_while_others_have_traffic() -> None:
    """And as many as others again when it computes no more, or the others are quiet."""
    clock = Clock()
    share = FairShare(8, clock=clock)
    share.note_used("acme", 0.8)
    alone = share.admits("acme", 1, 1)
    share.note_used("globex", 0.01)
    beside = share.admits("acme", 0, 0), share.admits("acme", 1, 1), share.admits("globex", 1, 1)
    clock.now += 2.0
    later = share.admits("acme", 1, 1)

    assert (True, (True, False, True), True) == (alone, beside, later)


@pytest.mark.parametrize(("others_s", "rest_s"), [(0.5, 0.2), (0.1, 0.08)])
def test_a_tenant_that_computes_rests_between_its_requests(others_s: float, rest_s: float) -> None:
    """As long as a request took, or less where the others need less than half of the time."""
    clock = Clock()
    share = FairShare(8, clock=clock)
    share.note_used("globex", others_s)
    share.note_used("acme", 0.4 if others_s < 0.5 else 0.5, took_s=0.2)

    before = share.rest_s("acme"), share.admits("acme", 0, 0)
    clock.now += 0.2
    after = share.rest_s("acme"), share.admits("acme", 0, 0)

    assert ((rest_s, False), (0.0, True)) == ((round(before[0], 6), before[1]), after)


def test_many_short_requests_are_not_heavy() -> None:
    """A popular tenant, of 1 ms per request, keeps its slots."""
    share = FairShare(8, clock=Clock())
    share.note_used("globex", 0.1)
    for _ in range(800):
        share.note_used("acme", 0.001)

    assert share.admits("acme", 1, 1)


def test_processor_seconds_fade() -> None:
    """So much per second, again and again, is the same share however long it goes on."""
    clock = Clock()
    share = FairShare(8, clock=clock)
    share.note_used("globex", 1000.0)
    clock.now += 100.0
    for _ in range(1000):
        clock.now += 1.0
        share.note_used("acme", 0.2)

    assert share._use["acme"][0] == pytest.approx(0.2 / (1 - math.exp(-1)))


def test_what_computes_is_heavy_before_it_ends() -> None:
    """It counts as it goes, and what is noted then does not count once more at the end."""
    clock = Clock()
    share = FairShare(8, clock=clock)
    share.note_used("globex", 0.05)
    before = share.admits("acme", 3, 3)
    share.note_running("acme", 0.25)
    during = share.admits("acme", 3, 3)
    share.note_used("acme", 0.3, 0.5, noted_s=0.25)

    assert (True, False, 0.3) == (before, during, pytest.approx(share._use["acme"][0]))


def test_tenants_that_use_nothing_any_more_are_forgotten() -> None:
    """What is remembered does not grow with all that ever had a request."""
    clock = Clock()
    share = FairShare(8, clock=clock)
    for number in range(FORGET_AFTER):
        share.note_used(str(number), 0.001)
    clock.now += 60.0

    share.note_used("acme", 0.1)

    assert {"acme"} == set(share._use)
