"""Departures: instances on their way out, by a clock moved by hand."""

import gc
from weakref import ref

import pytest

from tenantry.reload import draining as departures_module
from tenantry.reload.draining import SURVIVOR_S, UNFREEZE_PAUSE_S, Draining, _describe
from tenantry.routing.instance import Instance


def test_a_drain_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Until its time an instance finishes its requests; then it is cut, and the log says so."""
    now = [0.0]
    departures = Draining(30.0, lambda: now[0])
    instance = Instance(lambda *_: [], lambda: None)
    instance.answer({}, lambda *_: lambda _: None)
    instance.retire()
    departures.add("acme", instance)
    closed = []

    for at in (29.0, 30.0):
        now[0] = at
        departures.check()
        closed.append(instance.is_closed)

    [record] = caplog.records
    assert ([False, True], 0) == (closed, departures.draining)
    assert ("acme", 1) == (record.__dict__["tenant"], record.__dict__["cut_requests"])


def test_close_cuts_what_drains() -> None:
    """The process ends."""
    departures, instance = Draining(30.0), Instance(lambda *_: [], lambda: None)
    instance.answer({}, lambda *_: lambda _: None)
    instance.retire()
    departures.add("acme", instance)

    departures.close()

    assert (True, 0) == (instance.is_closed, departures.draining)


def departing(departures: Draining) -> "ref[object]":
    """Let an app depart that only the garbage collector frees; return what tells whether it did."""
    app = type("App", (), {})()
    app.itself = app
    instance = Instance(lambda *_: [], lambda: None, app)
    instance.retire()
    departures.add("acme", instance)
    return ref(app)


def test_few_frozen_apps_are_let_be(caplog: pytest.LogCaptureFixture) -> None:
    """To free one, all that the host froze would be looked at; those built since are freed."""
    now = [0.0]
    departures = Draining(30.0, lambda: now[0])
    frozen = departing(departures)
    gc.freeze()
    built_since = departing(departures)

    for now[0] in (1.0, 2.0 + SURVIVOR_S, 3.0 + 2 * SURVIVOR_S):
        departures.check()

    assert (True, None, []) == (frozen() is not None, built_since(), caplog.records)


def test_many_frozen_apps_are_freed_minutes_apart(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host lets the garbage collector look no more at what stays; these did not stay."""
    monkeypatch.setattr(departures_module, "MANY_FROZEN", 2)
    now, freed = [0.0], []
    departures = Draining(30.0, lambda: now[0])
    for _ in range(2):
        apps = [departing(departures) for _ in range(2)]
        gc.freeze()
        for pause_s in (1.0, SURVIVOR_S, SURVIVOR_S):
            now[0] += pause_s
            departures.check()
            freed.append([app() for app in apps].count(None))
    now[0] += UNFREEZE_PAUSE_S
    departures.check()

    freed.append([app() for app in apps].count(None))
    assert ([0, 2, 2, 0, 0, 0, 2], []) == (freed, caplog.records)
    assert gc.get_freeze_count()


def test_a_holder_is_described_by_its_type() -> None:
    """An object of a tenant's is not asked: it may raise whatever it likes."""

    class Odd:
        def __getattribute__(self, name: str) -> object:
            raise SystemExit(3)

    described = [_describe(one) for one in (Odd(), {"b": 1, 3: 2, "a": 1}, len, int)]

    expected = [f"{__name__}.{Odd.__qualname__}", "dict with a, b"]
    assert [*expected, "builtin_function_or_method len", "type int"] == described
