"""`tenantry routes` and `tenantry run` use a tenant's Flask app."""

import pytest

from commands import Tenantry


@pytest.mark.usefixtures("acme")
def test_routes_shows_rules_under_the_prefix(tenantry: Tenantry) -> None:
    """`tenantry routes` prints the rule, methods and Flask endpoint of each route."""
    assert [
        "rule\tmethods\tendpoint",
        "/acme/\tGET,HEAD,OPTIONS\tlanding.landingpage",
    ] == tenantry("routes", "acme").out.splitlines()


@pytest.mark.usefixtures("acme")
def test_run_is_flask_inside_the_tenant(tenantry: Tenantry) -> None:
    """`tenantry run NAME -- ARGS` runs Flask's command line with the tenant's app."""
    result = tenantry("run", "acme", "--", "routes")

    assert (0, True) == (result.code, "landing.landingpage" in result.out)
