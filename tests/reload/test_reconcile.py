"""If tenants conflict, the reconciler decides which of them is accepted."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_instances import make_tenant

from tenantry.errors import Problem
from tenantry.reload.draining import Draining
from tenantry.reload.rebuilds import Rebuilds
from tenantry.reload.reconcile import Reconciler
from tenantry.reload.warm_start import SiblingTenant
from tenantry.reload.workers import ReloadWorkers
from tenantry.routing.mount import Mount
from tenantry.settings import HostSettings
from tenantry.tenants.address import Address
from tenantry.tenants.model import Tenant
from tenantry.tenants.operator_state import DEFAULT_OPERATOR_STATE, OperatorState
from tenantry.tenants.validation import RejectedTenant, ValidationResult

AtShop = Callable[[str], Tenant]


@pytest.fixture(name="reconciler")
def _reconciler(data_dir: Path) -> Iterator[Reconciler]:
    """Return a reconciler that needs no files."""
    workers = ReloadWorkers(
        HostSettings(data_dir=data_dir), lambda _: pytest.fail("nothing is built"), lambda: None
    )
    yield Reconciler(
        lambda name: Mount(name, None, lambda _: pytest.fail("nothing is built")),
        Rebuilds(workers),
        Draining(30.0),
    )
    workers.close()


@pytest.fixture(name="at_shop")
def _at_shop(data_dir: Path) -> AtShop:
    """Return a function that makes a tenant with the URL prefix `/shop`."""
    return lambda name: make_tenant(data_dir, name, URL_PREFIX="/shop")


def states(reconciler: Reconciler) -> dict[str, str]:
    """Return the state of each tenant."""
    return {name: file.mount.state for name, file in reconciler.files.items()}


def reconcile(reconciler: Reconciler, *results: ValidationResult) -> dict[str, str]:
    """Reconcile one tenant after another, and return the states."""
    for result in results:
        if result.name not in reconciler.files:
            reconciler.add(result.name)
        reconciler.set_result(result.name, result)
        reconciler.reconcile(result.name)
        reconciler.reconcile_again()
    return states(reconciler)


@pytest.mark.parametrize(("is_starting", "first"), [(True, "acme"), (False, "globex")])
def test_of_two_tenants_that_conflict_one_is_accepted(
    reconciler: Reconciler, at_shop: AtShop, *, is_starting: bool, first: str
) -> None:
    """Of two conflicting tenants, the first by name is accepted at start.

    After the start, a new tenant cannot displace a served tenant.
    """
    reconciler.is_starting = is_starting

    found = reconcile(reconciler, at_shop("globex"), at_shop("acme"))

    assert {"acme": "failed", "globex": "failed", first: "idle"} == found


@pytest.mark.parametrize("order", [("acme", "globex"), ("globex", "acme")])
@pytest.mark.parametrize(
    ("accepted", "first"),
    [
        ([], "acme"),
        ([("globex", "digest-globex")], "globex"),
        ([("globex", "digest-older")], "globex"),
        ([("globex", "digest-older"), ("acme", "digest-acme")], "acme"),
        ([("globex", "digest-globex"), ("acme", "digest-acme")], "acme"),
    ],
)
def test_at_start_the_choice_of_other_workers_comes_first(
    reconciler: Reconciler,
    at_shop: AtShop,
    accepted: list[tuple[str, str]],
    first: str,
    order: tuple[str, str],
) -> None:
    """A worker that starts accepts the tenant that other workers have accepted.

    The choice of other workers also counts if the tenant file has changed since, but the same
    content comes first. Without other workers, the first tenant by name is accepted.
    """
    reconciler.prefer([SiblingTenant(*pair, Address("/elsewhere")) for pair in accepted])

    found = reconcile(reconciler, *(at_shop(name) for name in order))

    assert {"acme": "failed", "globex": "failed", first: "idle"} == found


def test_a_prefix_that_siblings_serve_is_reserved(reconciler: Reconciler, at_shop: AtShop) -> None:
    """A new worker reserves a URL prefix for the tenant that serves there in other workers."""
    reconciler.prefer([SiblingTenant("globex", "older-content", Address("/shop"))])
    rejected = RejectedTenant("globex", None, (Problem("globex.py", "is broken."),), "newer")
    reconciler.add("globex")  # all names are added before any is reconciled
    found = reconcile(reconciler, at_shop("acme"), rejected)
    reconciler.end_start()
    reason = reconciler.files["acme"].mount.reason
    reconciler.set_result("globex", rejected)
    reconciler.reconcile_again()

    assert {"acme": "failed", "globex": "failed"} == found
    assert "'URL_PREFIX': /shop belongs to tenant 'globex', which serves there" in reason
    assert "idle" == reconciler.files["acme"].mount.state


def test_after_the_start_no_tenant_is_displaced(reconciler: Reconciler, at_shop: AtShop) -> None:
    """Once a worker has started, the choices of other workers no longer matter."""
    reconciler.prefer([SiblingTenant("globex", "digest-globex", Address("/elsewhere"))])
    reconcile(reconciler, at_shop("acme"))
    reconciler.end_start()

    assert {"acme": "idle", "globex": "failed"} == reconcile(reconciler, at_shop("globex"))


def test_a_rejected_tenant_is_accepted_when_its_prefix_is_free(
    reconciler: Reconciler, at_shop: AtShop
) -> None:
    """When a URL prefix becomes free, the first waiting tenant by name gets it."""
    reconciler.is_starting = False
    reconcile(reconciler, at_shop("globex"), at_shop("initech"), at_shop("acme"))

    reconciler.remove("globex")
    reconciler.reconcile_again()

    assert {"acme": "idle", "initech": "failed"} == states(reconciler)


def test_a_rejected_change_keeps_the_claims(reconciler: Reconciler, at_shop: AtShop) -> None:
    """If a change of a tenant is rejected, the tenant keeps its URL prefix."""
    reconciler.is_starting = False
    broken = RejectedTenant("acme", Address("/acme"), (Problem("acme.py", "is broken."),), "f00")

    found = reconcile(reconciler, at_shop("acme"), broken, at_shop("globex"))

    assert {"acme": "stale", "globex": "failed"} == found


def test_a_disabled_tenant_frees_its_prefix(reconciler: Reconciler, at_shop: AtShop) -> None:
    """A disabled tenant frees its URL prefix, which another tenant may then take."""
    reconcile(reconciler, at_shop("acme"), at_shop("globex"))
    reconciler.is_starting = False
    files, seen = reconciler.files, []
    for state in (OperatorState(is_disabled=True), DEFAULT_OPERATOR_STATE):
        reconciler.set_operator_state("acme", state)
        reconciler.reconcile_again()
        seen.append((files["acme"].is_disabled, files["globex"].mount.state))

    assert [(True, "idle"), (False, "idle")] == seen
    assert "failed" == files["acme"].mount.state


@pytest.mark.parametrize("disabled", [True, False])
def test_the_host_names_of_an_unserved_tenant_stay_with_it(
    reconciler: Reconciler, data_dir: Path, *, disabled: bool
) -> None:
    """No other tenant gets the host name of a disabled or rejected tenant until it is removed."""
    reconciler.is_starting = False
    heir = make_tenant(data_dir, "globex", HOSTS=["a.test"])
    rejected = RejectedTenant("acme", heir.address, (Problem("acme.py", "is broken."),), "f00")
    if disabled:
        reconcile(reconciler, make_tenant(data_dir, "acme", HOSTS=["a.test"]))
        reconciler.set_operator_state("acme", OperatorState(is_disabled=True))
    else:
        reconcile(reconciler, rejected)

    before = reconcile(reconciler, heir)["globex"]
    closed = reconciler.closed_names()
    reconciler.remove("acme")
    reconciler.reconcile_again()

    assert ("failed", ["a.test"] if disabled else []) == (before, closed)
    assert {"globex": "idle"} == states(reconciler)


def test_the_host_names_that_served_last_are_reserved(
    reconciler: Reconciler, data_dir: Path
) -> None:
    """Until a tenant file is validated, its host names of the last start belong to its tenant."""
    reconciler.prefer([SiblingTenant("globex", "older", Address("/", ("a.test",)))])
    reconciler.add("globex")

    found = reconcile(reconciler, make_tenant(data_dir, "acme", HOSTS=["a.test"]))
    (mount,) = (one for one in reconciler.take_mounts() if one.name == "globex")

    assert ("failed", Address("/", ("a.test",))) == (found["acme"], mount.address)
