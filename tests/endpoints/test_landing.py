"""The landing page."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.test import Client

from tenantry.app.factory import close_app, create_app
from tenantry.endpoints.landing.models import INFO, LandingModel


@pytest.fixture(name="client")
def _client(data_dir: Path) -> Iterator[Client]:
    """Return a client of an app that only has the landing page."""
    config = {"APP_NAME": "acme", "SECRET_KEY": "k" * 32, "BLUEPRINTS": ["landing"]}
    app = create_app(config, data_dir=data_dir)
    yield Client(app)
    close_app(app)


@pytest.mark.parametrize(
    ("query", "name"),
    [("", "guest"), ("?name=Ada", "Ada"), ("?name=", ""), ("?name=J%C3%BCrgen%20%26", "Jürgen &")],
)
def test_the_page_greets_the_client(client: Client, query: str, name: str) -> None:
    """`GET /` answers 201 with the name from `?name=`, or `guest`."""
    answer = client.get(f"/{query}")

    assert (201, {"hello": name, "info": INFO}) == (answer.status_code, answer.get_json())


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_the_page_is_read_only(client: Client, method: str) -> None:
    """Any other method is 405 and lists the allowed ones."""
    answer = client.open("/?name=Ada", method=method)

    assert 405 == answer.status_code
    assert {"GET", "HEAD", "OPTIONS"} == set(answer.headers["Allow"].split(", "))


def test_a_name_in_the_body_is_ignored(client: Client) -> None:
    """A name in a JSON body has no effect; only the query string counts."""
    answer = client.get("/", json={"name": "Ada"})

    assert "guest" == answer.get_json()["hello"]


def test_the_model_works_without_an_app() -> None:
    """`LandingModel` gives the greeting without Flask."""
    assert {"hello": "Ada", "info": INFO} == LandingModel("Ada").greeting()
