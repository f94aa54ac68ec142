"""What an endpoint does to the process's log while it is set up is undone, and told."""

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
    """Return a function that builds an app with an endpoint of that text; closed after the test."""
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
    """Return a library's logger; afterwards it is as new."""
    logger = logging.getLogger("corp.audit")
    yield logger
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.NOTSET)
    logger.disabled, logger.propagate = False, True


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the facts of each warning about it."""
    return [vars(one) for one in caplog.records if one.getMessage() == "log.restored"]


@pytest.mark.parametrize("where", ["import", "registration", "failure"])
def test_a_dict_config_silences_nobody(
    where: str, build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    """Flask's documentation has it; host and neighbours log on, and one warning names it."""
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

    neighbour.warning("still heard")
    logging.getLogger("tenantry.host").warning("still heard")
    assert before == (root.handlers, root.level)
    assert 2 == sum(one.getMessage() == "still heard" for one in caplog.records)
    facts = [(one["tenant"], one["endpoint"], one["changed"]) for one in told(caplog)]
    changed = ["disabled loggers", "handlers of root", "level of root"]
    assert [("acme", "corp.e0", changed)] == facts
    assert "current_app.logger" in told(caplog)[0]["remedy"]


FLASKS = """from flask.logging import default_handler
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
        (FLASKS, "handlers of root"),
    ],
)  # fmt: skip
def test_what_is_the_hosts_is_put_back(
    text: str, changed: str, build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    """Each setting of the root logger and of what is no tenant's."""
    build("globex").logger.warning("is there")
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
    assert [[changed]] == [one["changed"] for one in told(caplog)]


def test_what_is_the_tenants_own_stays(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    """Its logger, those below, and those of its modules; nothing is told."""
    app = build(
        "acme",
        "import logging\n"
        "logging.getLogger('tenant.acme').setLevel(10)\n"
        "logging.getLogger('tenant.acme.sub').disabled = True\n"
        "logging.getLogger(__name__).setLevel(20)\n",
    )

    own = logging.getLogger(f"{app.extensions['tenantry'][0].package}.resources")
    sub = logging.getLogger("tenant.acme.sub")
    assert (10, True, 20, []) == (app.logger.level, sub.disabled, own.level, told(caplog))
    app.logger.setLevel(logging.NOTSET)
    sub.disabled = False


ADDING = """
import logging

class Own(logging.FileHandler):
    pass

logging.getLogger("corp.audit").addHandler(Own(__file__ + ".log"))
"""


def test_a_handler_of_a_librarys_logger_goes_with_its_app(
    build: Build, library: logging.Logger, corp: Path, data_dir: Path
) -> None:
    """Ten rebuilds left ten, with an open file and an app each, and each line ten times."""
    build("globex").logger.warning("is there")
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


def test_a_rebuild_may_configure_its_librarys_logger_again(
    build: Build, library: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    """The handler of the app before goes, as dictConfig has it; nothing is told."""
    config = DICT_CONFIG.replace('"root": {', '"loggers": {"corp.audit": {')
    config = config.replace("True", "False").replace(', "level": "CRITICAL"}', "}}")
    apps = [build("acme", config) for _ in range(2)]
    count = len(library.handlers)
    for app in apps:
        close_app(app)

    assert (1, 0, []) == (count, len(library.handlers), told(caplog))


def test_builds_at_once_go_by_the_state_before_them(library: logging.Logger) -> None:
    """One that begins while another has changed the log does not take that for the host's."""
    log, added = HostLog(), {"acme": [], "globex": []}  # type: ignore[var-annotated]
    root = logging.getLogger()
    before, hearing = root.level, logging.NullHandler()
    with log.watching("acme", added["acme"]) as acme:
        acme.begin("landing")
        root.setLevel(60)
        library.disabled = True
        with log.watching("globex", added["globex"]) as globex:
            globex.begin("landing")
            library.addHandler(hearing)
        level = root.level
        root.setLevel(60)

    assert (before, before, False) == (level, root.level, library.disabled)
    assert [[(library, hearing)], [(library, hearing)]] == [*added.values()]


@pytest.mark.parametrize("first", ["acme", "globex"])
def test_a_handler_that_may_be_either_tenants_stays_for_both(
    first: str, library: logging.Logger
) -> None:
    """It was added while both were built: it goes with the last of them."""
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


def test_a_handler_that_is_closed_meanwhile_is_not_put_back(library: logging.Logger) -> None:
    """A neighbour's app ends while an endpoint is set up."""
    log, added = HostLog(), []  # type: ignore[var-annotated]
    with log.watching("globex", added) as globex:
        globex.begin("landing")
        library.addHandler(logging.NullHandler())
    with log.watching("acme", []) as acme:
        acme.begin("landing")
        log.release("globex", added)

    assert [] == library.handlers


def test_flasks_own_handler_is_nobodys(build: Build) -> None:
    """Where an app logs without a host, Flask adds one that all apps share; it is never closed."""
    logger = logging.getLogger("tenant.acme")
    logger.addHandler(default_handler)
    close_app(build("acme", "from flask import current_app\n"))

    assert [default_handler] == logger.handlers
    logger.removeHandler(default_handler)
