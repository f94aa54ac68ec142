"""Tenantry's worker answers each case of the wire corpus as the specifications say."""

from collections.abc import Iterator

import pytest
from case import Case
from cases import CASES
from exchange import Outcome, play_all, problems
from wire_servers import OURS, serving

pytestmark = pytest.mark.live


@pytest.fixture(name="outcomes", scope="module")
def _outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """Return what the worker did with each case. The cases run over parallel connections."""
    with serving(OURS, tmp_path_factory.mktemp("wire")) as addresses:
        yield play_all(CASES, addresses)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_case_gets_a_right_answer(case: Case, outcomes: dict[str, Outcome]) -> None:
    """The worker gives a correct answer to the case."""
    found = problems(case, outcomes[case.name])

    assert [] == found, f"{case.spec}: {case.why}"
