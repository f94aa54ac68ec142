"""Names by turns."""

import pytest

from tenantry.tenants.round_robin import RoundRobin


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3, 0.01])
def test_each_name_has_its_turn_once_in_a_round(share: float) -> None:
    """However many are taken at a time."""
    names, turns = [f"t{number}" for number in range(10)], RoundRobin()

    taken: list[str] = []
    while len(taken) < 10:
        taken += turns.take(names, share)

    assert names == sorted(taken)


def test_a_new_name_comes_in_the_next_round() -> None:
    """One that is gone is named no more, not even in the round that began with it."""
    turns = RoundRobin()
    first = turns.take(["a", "b"], 0.5)
    rest = turns.take([*first, "c"], 0.5)
    later = turns.take(["c", "d"], 0.5) + turns.take(["c", "d"], 0.5)

    assert (1, [], ["c", "d"]) == (len(first), rest, sorted(later))
