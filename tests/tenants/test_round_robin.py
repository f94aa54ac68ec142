"""Round robin over names."""

import pytest

from tenantry.tenants.round_robin import RoundRobin


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3, 0.01])
def test_each_name_has_its_turn_once_in_a_round(share: float) -> None:
    """In one round, every name has one turn, however many are taken at a time."""
    names, turns = [f"t{number}" for number in range(10)], RoundRobin()

    taken: list[str] = []
    while len(taken) < 10:
        taken += turns.take(names, share)

    assert names == sorted(taken)


def test_a_new_name_waits_for_the_next_round() -> None:
    """A name that is gone is left out, even in the round that began with it."""
    turns = RoundRobin()
    first = turns.take(["a", "b"], 0.5)
    rest = turns.take([*first, "c"], 0.5)
    later = turns.take(["c", "d"], 0.5) + turns.take(["c", "d"], 0.5)

    assert (1, [], ["c", "d"]) == (len(first), rest, sorted(later))
