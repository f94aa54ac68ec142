"""Links and redirects of the start page that lose the URL prefix are found."""

import pytest
from flask import Flask, redirect

from tenantry.adoption.fact import Fact
from tenantry.adoption.links import check_start_page


def _app(page: str) -> Flask:
    app = Flask(__name__)
    app.add_url_rule("/", "index", lambda: page)
    app.add_url_rule("/cart", "cart", lambda: "cart", methods=["POST"])
    app.add_url_rule("/item/<int:number>", "item", lambda number: f"item {number}")
    return app


@pytest.mark.parametrize(
    ("page", "link"),
    [
        ('<link href="/static/x.css">', "<link> /static/x.css"),
        ("<form method=post action=/cart>", "<form> /cart"),
        ('<a href=" /item/7?x=1 ">', "<a> /item/7?x=1"),
        ('<img src="http://localhost/item/7">', "<img> http://localhost/item/7"),
        ('<a href="../cart">', "<a> ../cart"),
    ],
)
def test_a_link_without_the_prefix(page: str, link: str) -> None:
    """A link to a page of the app that a browser would request without the prefix is found."""
    facts = [*check_start_page(_app(page), "acme", "/acme")]

    assert [Fact("link", link, "/")] == facts


@pytest.mark.parametrize(
    "page",
    [
        '<a href="/acme/cart">',
        '<a href="cart">',
        '<a href="?next=/cart">',
        '<a href="/other-site">',
        '<a href="https://example.org/cart">',
        '<a href="mailto:ada@example.org">',
        '<a href="http://[">',
        "<![if x]><a href>",
        '{"href": "/cart"}',
    ],
)
def test_other_links(page: str) -> None:
    """Links below the prefix, links to other sites, and text that is no link are not found."""
    assert [] == [*check_start_page(_app(page), "acme", "/acme")]


def test_a_redirect_without_the_prefix_is_followed() -> None:
    """A redirect that loses the prefix is found, and so are the links of its target."""
    app = Flask(__name__)
    app.add_url_rule("/", "index", lambda: redirect("/home"))
    app.add_url_rule("/home", "home", lambda: '<a href="/">')

    facts = [*check_start_page(app, "acme", "/acme")]

    assert [Fact("redirect", "/home", "/"), Fact("link", "<a> /", "/home")] == facts


def test_endless_redirects_end() -> None:
    """An app that redirects forever is requested a few times."""
    app = Flask(__name__)
    app.add_url_rule("/", "index", lambda: redirect("/acme/?x=1"))

    assert [] == [*check_start_page(app, "acme", "/acme")]


def test_an_exception_is_a_fact() -> None:
    """If the start page raises an exception, the fact names the exception."""
    app = Flask(__name__)
    app.add_url_rule("/", "index", lambda: 1 // 0)

    facts = [*check_start_page(app, "acme", "/acme")]

    assert [("answer", "/")] == [(fact.kind, fact.subject) for fact in facts]
    assert "ZeroDivisionError" in facts[0].detail
