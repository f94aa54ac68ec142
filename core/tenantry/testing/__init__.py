"""A pytest plugin for tests of endpoints: apps of tenants, with folders and databases of their own.

`pip install tenantry` installs the plugin, so that no test has to name it. Without a test that uses
the plugin, the plugin imports nothing but pytest. This package is on the top layer: pytest imports
it, and no other package of Tenantry does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from flask import Flask

    from tenantry.testing.apps import TestedTenants

_Test = TypeVar("_Test", bound=Callable[..., object] | type)

_MARKERS = (
    "tenant(name, **keys): choose a tenant file and replace keys, or list the keys of a tenant",
    "for_each_tenant: run the test for each tenant file",
)


def for_each_tenant(test: _Test) -> _Test:
    """Run a test, or all tests of a class, once for each tenant file of the tenants folder."""
    marked: _Test = pytest.mark.for_each_tenant(test)
    return marked


# -- fixtures -----------------------------------------------------------------------------------


@pytest.fixture(name="tenant")
def _tenant(
    request: pytest.FixtureRequest, tmp_path: Path, tested_tenants: "TestedTenants"
) -> Iterator["Flask"]:
    """Return a tenant's app, with a data folder and a database of its own.

    The marker `@pytest.mark.tenant("acme")` chooses a tenant file, and
    `@pytest.mark.tenant(BLUEPRINTS=["shop.notes"])` lists the keys of a tenant without a file. If
    there is no marker, the first tenant of the tenants folder is built.
    """
    with _failing_shortly():
        names, keys = _choice(request)
        (app,) = tested_tenants.build(names[:1], keys, count=1, data_dir=tmp_path / "instance")
    yield app
    tested_tenants.close_apps(tmp_path / "instance")


@pytest.fixture
def two_tenants(
    request: pytest.FixtureRequest, tmp_path: Path, tested_tenants: "TestedTenants"
) -> Iterator[tuple["Flask", "Flask"]]:
    """Return the apps of two tenants, to test that your code keeps the tenants apart.

    The marker `@pytest.mark.tenant("acme", "globex")` chooses two tenant files. If the marker has
    only keys, both tenants have these keys. If there is no marker, the first two tenants of the
    tenants folder are built.
    """
    with _failing_shortly():
        names, keys = _choice(request)
        first, second = tested_tenants.build(names, keys, count=2, data_dir=tmp_path / "two")
    yield first, second
    tested_tenants.close_apps(tmp_path / "two")


@pytest.fixture(scope="session", name="tested_tenants")
def _tested_tenants(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["TestedTenants"]:
    """Return what builds the apps of this session. The fixtures above use it."""
    from tenantry.testing.apps import TestedTenants  # noqa: PLC0415 - takes 0.5 s

    with _failing_shortly():
        tenants = TestedTenants(
            tmp_path_factory.mktemp("tenantry"), request.config.getoption("tenantry_postgres")
        )
    yield tenants
    tenants.close()


# -- hooks of pytest ----------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names a PostgreSQL server for tests."""
    parser.getgroup("tenantry").addoption(
        "--tenantry-postgres",
        metavar="URL",
        help="PostgreSQL server on which tests of tenants with PostgreSQL create and drop their "
        "databases, such as postgresql+psycopg://tests@localhost/postgres.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and the fixture `client` unless another plugin has one."""
    for line in _MARKERS:
        config.addinivalue_line("markers", line)
    plugins = config.pluginmanager
    others = {name for name, plugin in plugins.list_name_plugin() if hasattr(plugin, "client")}
    if all(name.endswith("conftest.py") for name in others):  # a conftest.py may replace a fixture
        plugins.import_plugin("tenantry.testing.client")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Call each test that has the marker `for_each_tenant` once for each tenant file."""
    if metafunc.definition.get_closest_marker("for_each_tenant") is None:
        return
    from tenantry.errors import TenantryError  # noqa: PLC0415 - see the module docstring
    from tenantry.testing.files import tenant_names  # noqa: PLC0415 - as above

    try:
        names = tenant_names()
    except (TenantryError, ValueError) as error:
        raise pytest.Collector.CollectError(str(error)) from None
    metafunc.parametrize("tenant", names, indirect=True)


# -- private ------------------------------------------------------------------------------------


def _choice(request: pytest.FixtureRequest) -> tuple[tuple[str, ...], dict[str, Any] | None]:
    """Return the names and keys of a test's marker. The keys are None without a marker."""
    marker = request.node.get_closest_marker("tenant")
    names: tuple[Any, ...] = () if marker is None else marker.args
    keys = None if marker is None else marker.kwargs
    if wrong := [repr(name) for name in names if not isinstance(name, str)]:
        remedy = 'write @pytest.mark.tenant("acme") or @pytest.mark.tenant(BLUEPRINTS=["notes"])'
        pytest.fail(
            f"the marker 'tenant' has {wrong[0]}, but a name is text; {remedy}", pytrace=False
        )
    if wrong := [key for key in keys or () if not key.isupper()]:
        pytest.fail(f"the marker 'tenant' has {wrong[0]!r}; keys are upper-case.", pytrace=False)
    name = getattr(request, "param", None)  # from `for_each_tenant`
    return (name,) if name else names, keys


@contextmanager
def _failing_shortly() -> Iterator[None]:
    """Turn an error that its message explains into a failure without a traceback."""
    from tenantry.errors import TenantryError  # noqa: PLC0415 - see the module docstring
    from tenantry.settings import SettingsError  # noqa: PLC0415 - as above

    try:
        yield
    except (TenantryError, SettingsError) as error:
        if error.__cause__ is not None:  # the traceback of the author's own code
            raise
        pytest.fail(str(error), pytrace=False)
