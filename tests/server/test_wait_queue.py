"""The waiting room: who runs, who waits, and for how long; driven step by step."""

from tenantry.middleware.fair_share import FairShare
from tenantry.server.wait_queue import ROOM, WAIT_S, WaitQueue


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        """Return its time."""
        return self.now


def test_over_its_share_a_tenant_waits_and_others_run() -> None:
    """Of 4 threads a noisy tenant gets two; a quiet one still gets in."""
    room = WaitQueue[str](FairShare(4))

    noisy = [room.arrive("noisy", str(number)) for number in range(3)]

    assert [True, True, False] == noisy
    assert room.arrive("quiet", "q")


def test_first_come_first_served() -> None:
    """A request that ends lets in the one of its tenant that has waited the longest."""
    room = WaitQueue[str](FairShare(4))
    for number in range(5):
        room.arrive("acme", str(number))

    assert [["2"], ["3"], ["4"], [], []] == [room.end("acme") for _ in range(5)]


def test_who_comes_later_is_behind_who_waits() -> None:
    """Also when it would be admitted by itself, for the others have ended."""
    share = FairShare(2)
    room = WaitQueue[str](share)
    room.arrive("acme", "runs")
    room.arrive("acme", "first")
    share.threads = 8

    assert not room.arrive("acme", "second")
    assert ["first", "second"] == room.end("acme")


def test_tenants_have_their_turns() -> None:
    """With all threads taken, the next two go to two tenants that wait, not both to the first."""
    room = WaitQueue[str](FairShare(2))
    room.arrive(None, "x")
    room.arrive(None, "y")
    for tenant in ("acme", "globex"):
        for number in range(2):
            room.arrive(tenant, f"{tenant}{number}")

    turns = [room.end(None), room.end(None), room.end("acme"), room.end("globex")]

    assert [["acme0"], ["globex0"], ["acme1"], ["globex1"]] == turns


def test_who_waits_too_long_is_let_go() -> None:
    """The room tells when, and whom; nobody else leaves it."""
    clock = Clock()
    room = WaitQueue[str](FairShare(1), clock=clock)
    room.arrive("acme", "runs")
    room.arrive("acme", "early")
    clock.now += 0.4
    room.arrive("globex", "late")

    left_s = room.left_s()
    before = room.expired()
    clock.now += 0.6
    after = room.expired()

    assert (WAIT_S, []) == (round((left_s or 0) + 0.4, 6), before)
    assert [("acme", "early")] == after
    assert ["late"] == room.end("acme")
    assert room.left_s() is None


def test_who_rests_runs_when_its_rest_is_over() -> None:
    """The room tells when that is, and then lets the next one in, though no other has ended."""
    clock = Clock()
    share = FairShare(8, clock=clock)
    room = WaitQueue[str](share, clock=clock)
    share.note_used("globex", 0.5)
    share.note_used("acme", 0.5, took_s=0.2)
    is_in = room.arrive("acme", "next")

    left_s, before = room.left_s(), room.ready()
    clock.now += 0.2
    after = room.ready()

    assert (False, 0.2, []) == (is_in, round(left_s or 0, 6), before)
    assert ["next"] == after


def test_the_room_of_a_tenant_is_bounded() -> None:
    """One tenant's is full, another one's is not."""
    room = WaitQueue[int](FairShare(1))
    for number in range(ROOM + 1):
        room.arrive("acme", number)

    assert (True, False) == (room.is_full("acme"), room.is_full("globex"))


def test_nothing_is_kept_of_a_tenant_without_requests() -> None:
    """After thousands of tenants the room is as empty as before."""
    room = WaitQueue[int](FairShare(8))
    for number in range(1000):
        room.arrive(str(number), number)
        room.end(str(number))

    assert ({}, {}, 0) == (room._running, room._waiting, room._in_flight)
