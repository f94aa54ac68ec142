"""Who is admitted beside the others: tenants in memory, mounts that nobody routes to."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import KEY
from tenantry.errors import Problem
from tenantry.reload.draining import Draining
from tenantry.reload.rebuilds import Rebuilds
from tenantry.reload.reconcile import Reconciler
from tenantry.reload.workers import ReloadWorkers
from tenantry.routing.mount import Mount
from tenantry.tenants.catalogue import RejectedTenant, ValidationResult
from tenantry.tenants.model import parse_tenant
from tenantry.tenants.operator_state import DEFAULT_OPERATOR_STATE, OperatorState

Judge = Callable[..., ValidationResult]


@pytest.fixture(name="admission")
def _admission(data_dir: Path) -> Iterator[Reconciler]:
    """Return an admission that knows no file yet."""
    lanes = ReloadWorkers(data_dir, lambda _: pytest.fail("nothing is built"), lambda: None)
    mount = lambda name: Mount(name, None, lambda _: pytest.fail("nothing is built"))  # noqa: E731
    yield Reconciler(mount, Rebuilds(lanes), Draining(30.0))
    lanes.close()


@pytest.fixture(name="shop")
def _shop(data_dir: Path) -> Judge:
    """Return a function that makes a tenant at `/shop`."""

    def shop(name: str) -> ValidationResult:
        values = {"SECRET_KEY": name + KEY, "BLUEPRINTS": ["landing"], "URL_PREFIX": "/shop"}
        return parse_tenant(name, values, file=f"{name}.py", digest=f"d-{name}", data_dir=data_dir)

    return shop


def decide(admission: Reconciler, *verdicts: ValidationResult) -> dict[str, str]:
    """Decide on one after the other, and return the states of all."""
    for verdict in verdicts:
        if verdict.name not in admission.known:
            admission.appear(verdict.name)
        admission.note(verdict.name, verdict)
        admission.decide(verdict.name)
        admission.reconsider()
    return {name: known.mount.state for name, known in admission.known.items()}


@pytest.mark.parametrize(("is_starting", "first"), [(True, "acme"), (False, "globex")])
def test_of_two_that_clash_one_is_admitted(
    admission: Reconciler, shop: Judge, *, is_starting: bool, first: str
) -> None:
    """At start the first by name, later the one that was there."""
    admission.is_starting = is_starting

    states = decide(admission, shop("globex"), shop("acme"))

    assert {"acme": "failed", "globex": "failed", first: "idle"} == states


@pytest.mark.parametrize("order", [("acme", "globex"), ("globex", "acme")])
@pytest.mark.parametrize(
    ("accepted", "first"),
    [
        ([], "acme"),
        ([("globex", "d-globex")], "globex"),
        ([("globex", "d-older")], "acme"),
        ([("globex", "d-globex"), ("acme", "d-acme")], "acme"),
    ],
)
def test_at_start_whom_another_worker_has_accepted_comes_first(
    admission: Reconciler,
    shop: Judge,
    accepted: list[tuple[str, str]],
    first: str,
    order: tuple[str, str],
) -> None:
    """With this content; where that is so of both, or of none, the first by name."""
    admission.accepted_elsewhere = accepted

    states = decide(admission, *(shop(name) for name in order))

    assert {"acme": "failed", "globex": "failed", first: "idle"} == states


def test_after_the_start_nobody_is_displaced(admission: Reconciler, shop: Judge) -> None:
    """What other workers had accepted by then does not matter any more."""
    admission.accepted_elsewhere = [("globex", "d-globex")]
    decide(admission, shop("acme"))
    admission.end_start()

    assert {"acme": "idle", "globex": "failed"} == decide(admission, shop("globex"))


def test_who_was_refused_is_admitted_when_the_place_is_free(
    admission: Reconciler, shop: Judge
) -> None:
    """Its file has not changed; of two that wait, the first by name."""
    admission.is_starting = False
    decide(admission, shop("globex"), shop("initech"), shop("acme"))

    admission.disappear("globex")
    admission.reconsider()

    states = {name: known.mount.state for name, known in admission.known.items()}
    assert {"acme": "idle", "initech": "failed"} == states


def test_a_rejected_change_leaves_what_was_admitted(admission: Reconciler, shop: Judge) -> None:
    """The mount is stale, and its claims are still its own."""
    admission.is_starting = False
    broken = RejectedTenant("acme", "/acme", (Problem("acme.py", "is broken."),), "f00")

    states = decide(admission, shop("acme"), broken, shop("globex"))

    assert {"acme": "stale", "globex": "failed"} == states


def test_a_disabled_tenant_is_off_and_its_place_free(admission: Reconciler, shop: Judge) -> None:
    """Enabled again, it finds the other one there."""
    decide(admission, shop("acme"), shop("globex"))
    admission.is_starting = False
    known, told = admission.known, []
    for operator_state in (OperatorState(is_disabled=True), DEFAULT_OPERATOR_STATE):
        admission.pull("acme", operator_state)
        admission.reconsider()
        told.append((known["acme"].is_off, known["globex"].mount.state))

    assert [(True, "idle"), (False, "idle")] == told
    assert "failed" == known["acme"].mount.state
