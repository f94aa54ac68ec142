"""Libraries that import modules by name find the modules of the current tenant."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.test import Client

import leaks
from conftest import KEY
from tenantry.app.factory import close_app, create_app

LOOKUPS = {
    "importlib.import_module": "importlib.import_module('corp.shop.resources').Page",
    "a reference to import_module": "jinja2.loaders.import_module('corp.shop.resources').Page",
    "importlib.util.find_spec": "find(importlib.util.find_spec('corp.shop.resources').name)",
    "pkgutil.resolve_name": "pkgutil.resolve_name('corp.shop.resources:Page')",
    "unittest.mock.patch": "unittest.mock.patch('corp.shop.resources.Page').getter().Page",
    "logging.config": "logging.config.BaseConfigurator({}).resolve('corp.shop.resources.Page')",
    "Werkzeug": "werkzeug.utils.import_string('corp.shop.resources:Page')",
    "Jinja's extensions": "jinja2.utils.import_string('corp.shop.resources.Page')",
    "Celery": "celery.utils.imports.symbol_by_name('corp.shop.resources:Page')",
    "RQ": "rq.utils.import_attribute('corp.shop.resources.Page')",
}
"""The name of a library → an expression that finds the class `Page` of the tenant's endpoint."""

VIEWS = """
import importlib.util, logging.config, pkgutil, sys, unittest.mock
import celery.utils.imports, jinja2.loaders, jinja2.utils, rq.utils, werkzeug.utils

def find(name):
    return sys.modules[name].Page

@shop_bp.post("/")
def look_up():
    from flask import request
    return eval(request.get_data(as_text=True)).__module__

@shop_bp.get("/template")
def template():
    loader = jinja2.PackageLoader("corp.shop", "pages")
    return jinja2.Environment(loader=loader).get_template("page.html").render()
"""


@pytest.fixture(name="acme")
def _acme(corp: Path, data_dir: Path) -> Iterator[Flask]:
    """Return acme's app, whose endpoint evaluates an expression in a request."""
    shop = leaks.write_endpoint(corp, "shop", blueprint=VIEWS)
    (corp / "corp/shop/pages").mkdir()
    (corp / "corp/shop/pages/page.html").write_text("a page")
    app = create_app(
        {"APP_NAME": "acme", "SECRET_KEY": KEY, "BLUEPRINTS": [shop]}, data_dir=data_dir
    )
    yield app
    close_app(app)


@pytest.mark.parametrize("library", LOOKUPS)
def test_a_plain_name_means_the_tenants_module(acme: Flask, library: str) -> None:
    """A library that gets a plain name from a tenant's code finds the tenant's module."""
    assert "corp@acme.shop.resources" == Client(acme).post("/", data=LOOKUPS[library]).text


def test_jinja_loads_templates_of_the_tenants_package(acme: Flask) -> None:
    """`PackageLoader` accepts the plain name of a tenant's package."""
    assert "a page" == Client(acme).get("/template").text


def test_the_name_of_a_library_means_the_library(acme: Flask) -> None:
    """A name that is not the tenant's is imported as usual."""
    expression = "importlib.import_module('json.decoder').JSONDecoder"

    assert "json.decoder" == Client(acme).post("/", data=expression).text
