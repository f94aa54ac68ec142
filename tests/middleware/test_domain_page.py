"""The page for proxies says which host names the host serves."""

from werkzeug.test import Client

from tenantry.middleware.domain_page import DomainPage

CLIENT = Client(DomainPage(lambda: {"shop.test"}, ("Apps.test", ".wild.test")))


def test_only_names_that_the_host_serves_get_200() -> None:
    """Names of tenants and exact names in `TRUSTED_HOSTS` get 200, and all others get 404."""
    queries = {
        "domain=shop.test": 200,
        "domain=SHOP.test.": 200,
        "domain=apps.test": 200,
        "domain=x.wild.test": 404,
        "domain=.wild.test": 404,
        "domain=other.test": 404,
        "domain=shop.test&domain=other.test": 404,
        "domain=": 404,
        "": 404,
    }

    assert queries == {query: CLIENT.get(f"/?{query}").status_code for query in queries}
