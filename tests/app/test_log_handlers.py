"""If an endpoint changes the process's logging during setup, the host undoes the change."""

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.logging import default_handler

import leaks
from conftest import KEY
from tenantry.app.factory import close_app, create_app
from tenantry.app.log_handlers import HostLog
from tenantry.errors import EndpointError

DICT_CONFIG = """
import logging.config

logging.config.dictConfig({
    "version": 1, "disable_existing_loggers": True,
    "handlers": {"own": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["own"], "level": "CRITICAL"},
})
"""

Build = Callable[..., Flask]


@pytest.fixture(name="build")
def _build(corp: Path, data_dir: Path) -> Iterator[Build]:
    """Return a function that builds an app whose endpoint runs the given code.

    The fixture closes the apps after the test.
    """
    apps = []

    def build(name: str, text: str = "", *, blueprint: str = "", **keys: object) -> Flask:
        endpoint = "landing"
        if text or blueprint:
            number = len(list(corp.glob("corp/*")))
            endpoint = leaks.write_endpoint(corp, f"e{number}", resources=text, blueprint=blueprint)
        values = {"APP_NAME": name, "SECRET_KEY": f"{name}-{KEY}", "BLUEPRINTS": [endpoint]}
        apps.append(create_app(values | keys, data_dir=data_dir))
        return apps[-1]

    yield build
    for app in apps:
        close_app(app)


@pytest.fixture(name="library")
def _library() -> Iterator[logging.Logger]:
    """Return a library's logger, which the fixture resets after the test."""
    logger = logging.getLogger("corp.audit")
    yield logger
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.NOTSET)
    logger.disabled, logger.propagate = False, True


def warnings(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the fields of each `log.restored` warning that the host logged."""
    return [vars(one) for one in caplog.records if one.getMessage() == "log.restored"]


@pytest.mark.parametrize("where", ["import", "registration", "failure"])
def test_a_dict_config_does_not_silence_the_host(
    where: str, build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    """If an endpoint calls `dictConfig`, the host and other tenants still log."""
    neighbour, root = build("globex").logger, logging.getLogger()
    before = root.handlers[:], root.level

    if where == "registration":
        hook = "".join(f"    {line}\n" for line in DICT_CONFIG.splitlines())
        build("acme", blueprint=f"\n@e0_bp.record_once\ndef set_up(state):\n{hook}")
    elif where == "import":
        build("acme", DICT_CONFIG)
    else:
        with pytest.raises(EndpointError):
            build("acme", f"{DICT_CONFIG}1 / 0\n")

    neighbour.warning("still logged")
    logging.getLogger("tenantry.host").warning("still logged")
    assert before == (root.handlers, root.level)
    assert 2 == sum(one.getMessage() == "still logged" for one in caplog.records)
    facts = [(one["tenant"], one["endpoint"], one["changed"]) for one in warnings(caplog)]
    changed = ["disabled loggers", "handlers of root", "level of root"]
    assert [("acme", "corp.e0", changed)] == facts
    assert "current_app.logger" in warnings(caplog)[0]["remedy"]


DEFAULT_HANDLER = """from flask.logging import default_handler
logging.getLogger().addHandler(default_handler)"""


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("logging.getLogger().setLevel(60)", "level of root"),
        ("logging.disable()", "logging.disable"),
        ("logging.getLogger().handlers.clear()", "handlers of root"),
        ("logging.getLogger().addHandler(logging.StreamHandler())", "handlers of root"),
        ("logging.getLogger('tenant').addHandler(logging.StreamHandler())", "handlers of tenant"),
        ("logging.getLogger().handlers[0].setLevel(60)", "handlers of root"),
        ("logging.getLogger().handlers[0].addFilter(print)", "handlers of root"),
        ("logging.getLogger().addFilter(print)", "filters of root"),
        ("logging.getLogger('tenantry').propagate = False", "propagation of tenantry"),
        ("logging.getLogger('tenantry.host').disabled = True", "disabled loggers"),
        ("logging.getLogger('tenant.globex').disabled = True", "disabled loggers"),
        (DEFAULT_HANDLER, "handlers of root"),
    ],
)  # fmt: skip
def test_changes_to_the_hosts_logging_are_undone(
    text: str, changed: str, build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    """After a build, the host restores the root logger and all loggers of other tenants."""
    build("globex").logger.warning("exists")
    root, host = logging.getLogger(), logging.getLogger("tenantry")

    def state() -> list[object]:
        flags = [logging.getLogger(f"{one}").disabled for one in ("tenantry.host", "tenant.globex")]
        handler = root.handlers[0]
        of_root = [root.handlers[:], root.level, root.filters[:], root.manager.disable]
        return [*of_root, handler.level, handler.filters[:], host.propagate, *flags]

    before = state()
    build("acme", f"import logging\n{text}\n")

    assert before == state()
    assert [] == logging.getLogger("tenant").handlers
    assert [[changed]] == [one["changed"] for one in warnings(caplog)]


def test_changes_to_a_tenants_own_loggers_are_kept(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    """Settings of the app's logger, its child loggers and endpoint modules' loggers are kept."""
    app = build(
        "acme",
        "import logging\n"
        "logging.getLogger('tenant.acme').setLevel(10)\n"
        "logging.getLogger('tenant.acme.sub').disabled = True\n"
        "logging.getLogger(__name__).setLevel(20)\n",
    )

    own = logging.getLogger(f"{app.extensions['tenantry'][0].package}.resources")
    sub = logging.getLogger("tenant.acme.sub")
    assert (10, True, 20, []) == (app.logger.level, sub.disabled, own.level, warnings(caplog))
    app.logger.setLevel(logging.NOTSET)
    sub.disabled = False


ADDING = """
import logging

class Own(logging.FileHandler):
    pass

logging.getLogger("corp.audit").addHandler(Own(__file__ + ".log"))
"""


def test_a_handler_on_a_librarys_logger_is_removed_with_its_app(
    build: Build, library: logging.Logger, corp: Path, data_dir: Path
) -> None:
    """Closing an app also removes log handlers that the app added to a library's logger."""
    build("globex").logger.warning("exists")
    name = leaks.write_endpoint(corp, "adding", resources=ADDING)
    values = {"APP_NAME": "acme", "SECRET_KEY": KEY, "BLUEPRINTS": [name]}
    gone, counts = [], []
    for _ in range(3):
        app = create_app(values, data_dir=data_dir)
        counts.append(len(library.handlers))
        gone.append(weakref.ref(app))
        close_app(app)
        del app
    gc.collect()

    assert [1, 1, 1, 0] == [*counts, len(library.handlers)]
    assert [None, None, None] == [one() for one in gone]


def test_a_rebuild_may_configure_a_librarys_logger_again(
    build: Build, library: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    """A rebuilt app may replace the log handler that the old app added to a library's logger."""
    config = DICT_CONFIG.replace('"root": {', '"loggers": {"corp.audit": {')
    config = config.replace("True", "False").replace(', "level": "CRITICAL"}', "}}")
    apps = [build("acme", config) for _ in range(2)]
    count = len(library.handlers)
    for app in apps:
        close_app(app)

    assert (1, 0, []) == (count, len(library.handlers), warnings(caplog))


def test_concurrent_builds_restore_the_state_before_both(library: logging.Logger) -> None:
    """After two overlapping builds, the host's logging is the same as before."""
    log, added = HostLog(), {"acme": [], "globex": []}  # type: ignore[var-annotated]
    root = logging.getLogger()
    before, handler = root.level, logging.NullHandler()
    with log.watching("acme", added["acme"]) as acme:
        acme.begin("landing")
        root.setLevel(60)
        library.disabled = True
        with log.watching("globex", added["globex"]) as globex:
            globex.begin("landing")
            library.addHandler(handler)
        level = root.level
        root.setLevel(60)

    assert (before, before, False) == (level, root.level, library.disabled)
    assert [[(library, handler)], [(library, handler)]] == [*added.values()]


@pytest.mark.parametrize("first", ["acme", "globex"])
def test_a_handler_of_unclear_origin_is_kept_for_both_tenants(
    first: str, library: logging.Logger
) -> None:
    """A log handler added while two tenants were being built stays until both apps are closed."""
    log, added = HostLog(), {"acme": [], "globex": []}  # type: ignore[var-annotated]
    watches = [log.watching(name, list_) for name, list_ in added.items()]
    with watches[0] as acme, watches[1] as globex:
        acme.begin("landing")
        globex.begin("landing")
        library.addHandler(logging.NullHandler())
    last = "globex" if first == "acme" else "acme"
    counts = []
    for name in (first, last):
        log.release(name, added[name])
        counts.append(len(library.handlers))

    assert [1, 0] == counts


def test_a_handler_closed_during_a_build_is_not_restored(library: logging.Logger) -> None:
    """If an app closes during another app's build, the build does not restore its log handlers."""
    log, added = HostLog(), []  # type: ignore[var-annotated]
    with log.watching("globex", added) as globex:
        globex.begin("landing")
        library.addHandler(logging.NullHandler())
    with log.watching("acme", []) as acme:
        acme.begin("landing")
        log.release("globex", added)

    assert [] == library.handlers


def test_flasks_default_handler_is_never_closed(build: Build) -> None:
    """Closing an app keeps Flask's default log handler, because all apps share that handler."""
    logger = logging.getLogger("tenant.acme")
    logger.addHandler(default_handler)
    close_app(build("acme", "from flask import current_app\n"))

    assert [default_handler] == logger.handlers
    logger.removeHandler(default_handler)
