"""Lazy URL rules build the same URLs as Werkzeug's rules, but compile only on first use."""

from typing import Any

import pytest
from flask import Flask, url_for
from werkzeug.routing import BuildError, Rule

from tenantry.app.lazy_rule import LazyRule

RULES: list[tuple[str, dict[str, Any]]] = [
    ("/", {}),
    ("/a/", {}),
    ("/shop/<item>", {}),
    ("/shop/<int(fixed_digits=4):number>/x", {}),
    ("/<float:price>/<path:rest>", {}),
    ("/<any(red, green):colour>/<uuid:key>", {}),
    ("/page", {"defaults": {"number": 1}}),
    ("/page/<int:number>", {}),
    ("/ü ber/<rule>", {}),
    ("/<self>/<values>", {}),
    ("/build", {"build_only": True}),
    ("/host", {"subdomain": "a"}),
]

VALUES: list[dict[str, Any]] = [
    {},
    {"item": "a b/ü?", "q": [1, 2], "none": None},
    {"number": 7, "rule": "r", "self": "s", "values": "v"},
    {"number": "no number"},
    {"price": 1.5, "rest": "a/b//c"},
    {"colour": "red", "key": "12345678-1234-5678-1234-567812345678", "_external": True},
    {"colour": "blue", "key": "none"},
]


def app_with(rule_class: type[Rule]) -> Flask:
    """Return an app that has all sample URL rules. All rules have the given class."""

    class App(Flask):
        url_rule_class = rule_class

    app = App("acme")
    for place, (rule, options) in enumerate(RULES):
        endpoint = "page" if rule.startswith("/page") else f"e{place}"
        app.add_url_rule(rule, endpoint, str, **options)
    return app


def urls(app: Flask) -> list[str]:
    """Return the results of two `url_for` calls for each rule and value.

    The first call compiles the URL builder.
    """
    found = []
    with app.test_request_context("/", base_url="http://localhost/acme"):
        for _ in range(2):
            for rule in app.url_map.iter_rules():
                for values in VALUES:
                    try:
                        found.append(url_for(rule.endpoint, **values))
                    except (BuildError, ValueError) as error:
                        found.append(str(error))
    return found


def test_urls_are_the_same_as_werkzeugs() -> None:
    """Lazy rules give the same URLs and errors as Werkzeug's rules, for all kinds of values."""
    expected = urls(app_with(Rule))

    assert expected == urls(app_with(LazyRule))
    assert any(url.startswith("/acme/shop/0007/x") for url in expected)


@pytest.mark.parametrize("append_unknown", [True, False])
def test_a_builder_is_compiled_once_and_on_first_use(
    monkeypatch: pytest.MonkeyPatch, *, append_unknown: bool
) -> None:
    """Building an app and matching a request do not compile a rule's URL builder."""
    compiled: list[bool] = []
    compile_builder = Rule._compile_builder

    def noted(self: Rule, append_unknown: bool = True) -> Any:
        compiled.append(append_unknown)
        return compile_builder(self, append_unknown)

    monkeypatch.setattr(Rule, "_compile_builder", noted)
    app = Flask("acme", static_folder=None)
    app.url_rule_class = LazyRule
    app.add_url_rule("/shop/<item>", "shop", lambda item: item)
    answer = app.test_client().get("/shop/x").text
    adapter = app.url_map.bind("localhost")
    before = list(compiled)

    built = [adapter.build("shop", {"item": "x"}, append_unknown=append_unknown) for _ in "ab"]

    expected = ("x", [], [append_unknown], ["/shop/x"] * 2)
    assert expected == (answer, before, compiled, built)
