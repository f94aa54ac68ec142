"""Departures: instances on their way out, by a clock moved by hand."""

import gc
from weakref import ref

import pytest

from core.departures import SURVIVOR_S, Departures, _describe
from core.instance import Instance


def test_a_drain_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Until its time an instance finishes its requests; then it is cut, and the log says so."""
    now = [0.0]
    departures = Departures(30.0, lambda: now[0])
    instance = Instance(lambda *_: [], lambda: None)
    instance.lease()
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
    departures, instance = Departures(30.0), Instance(lambda *_: [], lambda: None)
    instance.lease()
    instance.retire()
    departures.add("acme", instance)

    departures.close()

    assert (True, 0) == (instance.is_closed, departures.draining)


def test_an_app_that_was_frozen_is_freed_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """The host lets the garbage collector look no more at what stays; this one does not stay."""
    now = [0.0]
    departures = Departures(30.0, lambda: now[0])
    app = type("App", (), {})()
    app.itself = app
    instance = Instance(lambda *_: [], lambda: None, app)
    instance.retire()
    departures.add("acme", instance)
    is_gone = ref(app)
    del app
    gc.freeze()

    for now[0] in (1.0, 2.0 + SURVIVOR_S):
        departures.check()

    assert (None, []) == (is_gone(), caplog.records)
    assert gc.get_freeze_count()


def test_a_holder_is_described_by_its_type() -> None:
    """An object of a tenant's is not asked: it may raise whatever it likes."""

    class Odd:
        def __getattribute__(self, name: str) -> object:
            raise SystemExit(3)

    described = [_describe(one) for one in (Odd(), {"b": 1, 3: 2, "a": 1}, len, int)]

    expected = [f"{__name__}.{Odd.__qualname__}", "dict with a, b"]
    assert [*expected, "builtin_function_or_method len", "type int"] == described
