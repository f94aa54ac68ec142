"""gunicorn has all names that the worker uses; otherwise, gunicorn's own worker serves."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import ThreadWorker

from tenantry.server import gunicorn_api
from tenantry.server.gunicorn_api import LENIENT_SETTINGS, custom_hook, missing_names, why_not_ours
from tenantry.server.worker import TenantWorker


def _config(**settings: Any) -> Config:
    config = Config()
    for name, value in settings.items():
        config.set(name, value)
    return config


def test_the_installed_gunicorn_has_all_names() -> None:
    """The installed gunicorn has every name that the worker uses, with default settings."""
    assert ([], "") == (missing_names(), why_not_ours(_config()))


def test_a_missing_name_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods, settings and arguments that gunicorn lacks are reported."""
    monkeypatch.setattr(gunicorn_api, "CLASSES", {Worker: ("run", "planted")})
    monkeypatch.setattr(gunicorn_api, "SETTINGS", ("threads", "other"))
    monkeypatch.setattr(gunicorn_api, "WORKER_ARGUMENTS", ("age", "more"))

    assert ["Worker.planted", "Worker.__init__(age, more)", "setting other"] == missing_names()
    assert why_not_ours(_config()).startswith("this version of gunicorn has no Worker.planted")


@pytest.mark.parametrize("name", LENIENT_SETTINGS)
def test_a_lenient_setting_is_not_for_this_worker(name: str) -> None:
    """With a setting that allows what HTTP forbids, gunicorn's own worker has to serve."""
    if name in Config().settings:
        assert f"{name} is set" == why_not_ours(_config(**{name: True}))


def test_underscores_may_not_become_hyphens() -> None:
    """With `header_map = "dangerous"`, gunicorn's own worker has to serve."""
    assert "header_map is set" == why_not_ours(_config(header_map="dangerous"))
    assert "" == why_not_ours(_config(header_map="refuse"))


def test_tls_is_not_for_this_worker() -> None:
    """With a certificate, gunicorn's threaded worker serves."""
    assert "TLS is set" == why_not_ours(_config(certfile=__file__, keyfile=__file__))


def test_only_a_hook_of_the_configuration_is_called() -> None:
    """Gunicorn's default hooks do nothing, so they are not called."""

    def hook(_worker: object, _request: object) -> None: ...

    config = _config(pre_request=hook)

    assert (hook, None) == (custom_hook(config, "pre_request"), custom_hook(config, "post_request"))


@pytest.mark.parametrize("settings", [{"certfile": __file__}, {"header_map": "dangerous"}])
def test_gunicorns_worker_serves_instead(
    caplog: pytest.LogCaptureFixture, settings: dict[str, Any]
) -> None:
    """Where this worker cannot serve, gunicorn's threaded worker does, with one warning."""
    log = logging.getLogger("gunicorn.error")

    worker = TenantWorker(1, 1, [], SimpleNamespace(), 30, _config(**settings), log)

    worker.tmp.close()
    assert ThreadWorker is type(worker)
    [record] = caplog.records
    assert ("WARNING", True) == (
        record.levelname, record.getMessage().startswith("gunicorn's threaded worker serves"),
    )  # fmt: skip


def test_a_missing_name_lets_gunicorns_worker_serve(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If gunicorn lacks a name that the worker uses, gunicorn's own worker serves."""
    monkeypatch.setattr(gunicorn_api, "CLASSES", {Worker: ("planted",)})
    log = logging.getLogger("gunicorn.error")

    worker = TenantWorker(1, 1, [], SimpleNamespace(), 30, _config(), log)

    worker.tmp.close()
    assert (ThreadWorker, 1) == (type(worker), len(caplog.records))
    assert "Worker.planted" in caplog.text


def test_only_this_list_names_gunicorn() -> None:
    """The modules that import gunicorn are few, and the list covers what they use."""
    folder = Path(gunicorn_api.__file__).parent
    importing = {path.name for path in folder.glob("*.py") if "from gunicorn" in path.read_text()}

    assert {"gunicorn_api.py", "worker.py"} <= importing
    assert importing <= {"__main__.py", "gunicorn_api.py", "heartbeat.py", "log.py", "worker.py"}
