"""When an app is replaced, the old app finishes its requests and is then closed."""

import gc
from weakref import ref

import pytest
from small_instances import empty_app, open_request

from tenantry.reload import draining as draining_module
from tenantry.reload.draining import (
    LEAK_CHECK_AFTER_S,
    UNFREEZE_INTERVAL_S,
    Draining,
    _describe,
)
from tenantry.routing.instance import Instance


def retired_with_a_request(draining: Draining) -> Instance:
    """Return a replaced app that still has a request in flight."""
    instance = Instance(empty_app, lambda: None)
    open_request(instance)
    instance.retire()
    draining.add("acme", instance)
    return instance


def test_a_drain_is_limited_in_time(caplog: pytest.LogCaptureFixture) -> None:
    """After the drain timeout, an old app is closed, and the log says how many requests it cut."""
    now = [0.0]
    draining = Draining(30.0, lambda: now[0])
    instance = retired_with_a_request(draining)
    closed = []

    for now[0] in (29.0, 30.0):
        draining.check()
        closed.append(instance.is_closed)

    [record] = caplog.records
    assert ([False, True], []) == (closed, draining._draining)
    assert ("acme", 1) == (record.__dict__["tenant"], record.__dict__["cut_requests"])


def test_close_closes_what_drains() -> None:
    """Closing the host closes old apps without waiting for their requests."""
    draining = Draining(30.0)
    instance = retired_with_a_request(draining)

    draining.close()

    assert (True, []) == (instance.is_closed, draining._draining)


def retire_app_with_a_cycle(draining: Draining) -> "ref[object]":
    """Replace an app that only the garbage collector can free.

    Return a weak reference to the app.
    """
    app = type("App", (), {})()
    app.itself = app
    instance = Instance(empty_app, lambda: None, app)
    instance.retire()
    draining.add("acme", instance)
    return ref(app)


def test_a_few_frozen_apps_stay_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    """A few old apps that `gc.freeze` has frozen stay in memory.

    Freeing frozen apps would need a collection of all frozen objects. Apps that are not frozen are
    freed.
    """
    now = [0.0]
    draining = Draining(30.0, lambda: now[0])
    frozen = retire_app_with_a_cycle(draining)
    gc.freeze()
    built_later = retire_app_with_a_cycle(draining)

    for now[0] in (1.0, 2.0 + LEAK_CHECK_AFTER_S, 3.0 + 2 * LEAK_CHECK_AFTER_S):
        draining.check()

    assert (True, None, []) == (frozen() is not None, built_later(), caplog.records)


def test_many_frozen_apps_are_freed_at_intervals(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When many frozen apps have been replaced, a full garbage collection frees them."""
    monkeypatch.setattr(draining_module, "MAX_FROZEN", 2)
    now, freed = [0.0], []
    draining = Draining(30.0, lambda: now[0])
    for _ in range(2):
        apps = [retire_app_with_a_cycle(draining) for _ in range(2)]
        gc.freeze()
        for pause_s in (1.0, LEAK_CHECK_AFTER_S, LEAK_CHECK_AFTER_S):
            now[0] += pause_s
            draining.check()
            freed.append([app() for app in apps].count(None))
    now[0] += UNFREEZE_INTERVAL_S
    draining.check()

    freed.append([app() for app in apps].count(None))
    assert ([0, 2, 2, 0, 0, 0, 2], []) == (freed, caplog.records)
    assert gc.get_freeze_count()


def test_a_referrer_is_described_by_its_type() -> None:
    """The log describes what keeps an app alive by type only, because attributes may raise."""

    class Odd:
        def __getattribute__(self, name: str) -> object:
            raise SystemExit(3)

    described = [_describe(each) for each in (Odd(), {"b": 1, 3: 2, "a": 1}, len, int)]

    expected = [f"{__name__}.{Odd.__qualname__}", "dict with a, b"]
    assert [*expected, "builtin_function_or_method len", "type int"] == described
