"""The landing endpoint greets a visitor by name."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.test import Client

from tenantry.app.factory import close_app, create_app
from tenantry.endpoints.landing.models import INFO, LandingModel


@pytest.fixture(name="client")
def _client(data_dir: Path) -> Iterator[Client]:
    """Return a client of an app that has only the landing endpoint."""
    config = {"APP_NAME": "acme", "SECRET_KEY": "k" * 32, "BLUEPRINTS": ["landing"]}
    app = create_app(config, data_dir=data_dir)
    yield Client(app)
    close_app(app)


@pytest.mark.parametrize(
    ("query", "name"),
    [("", "guest"), ("?name=Ada", "Ada"), ("?name=", ""), ("?name=J%C3%BCrgen%20%26", "Jürgen &")],
)
def test_the_page_greets_the_client(client: Client, query: str, name: str) -> None:
    """`GET /` of the landing endpoint answers 201 and greets the name in `?name=`, or `guest`."""
    answer = client.get(f"/{query}")

    assert (201, {"hello": name, "info": INFO}) == (answer.status_code, answer.get_json())


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_the_page_is_read_only(client: Client, method: str) -> None:
    """The landing page answers any method other than GET with 405 and lists the allowed methods."""
    answer = client.open("/?name=Ada", method=method)

    assert 405 == answer.status_code
    assert {"GET", "HEAD", "OPTIONS"} == set(answer.headers["Allow"].split(", "))


def test_a_name_in_the_body_is_ignored(client: Client) -> None:
    """The landing page takes the name only from the query string, and ignores a JSON body."""
    answer = client.get("/", json={"name": "Ada"})

    assert "guest" == answer.get_json()["hello"]


def test_the_model_works_without_an_app() -> None:
    """`LandingModel` creates the greeting without Flask."""
    assert {"hello": "Ada", "info": INFO} == LandingModel("Ada").greeting()
