"""A tenant's code receives only signals of its own app, from Flask and from any other library."""

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blinker import Namespace
from flask import Flask, request_started
from werkzeug.test import Client

import leaks
from conftest import KEY
from tenantry.app.factory import close_app, create_app

LOGIN = Namespace().signal("user-logged-in")
"""A signal of a library, such as the signals of Flask-Login. All tenants of a process share it."""

CODE = f"""
from functools import partial, wraps
from {__name__} import LOGIN, decorated

heard = []

def receive(sender, user):
    heard.append(user)

class Receiver:
    def receive(self, sender, user):
        heard.append(user)
    __call__ = receive

class Record:
    def __init__(self, sender, user):
        heard.append(user)

receiver, part = Receiver(), partial(lambda _, sender, user: heard.append(user), 1)
"""

VIEWS = f"""
from {__name__} import LOGIN
from .resources import heard, receive

@shop_bp.get("/login/<user>")
def login(user):
    LOGIN.send(user=user)
    return {{"heard": heard}}

@shop_bp.get("/follow/<user>")
def follow(user):
    with LOGIN.connected_to(receive):
        return login(user)
"""


def decorated(function: Callable[..., object]) -> Callable[..., object]:
    """Return another function that calls the function, as decorators of libraries do."""
    from functools import wraps  # noqa: PLC0415 - only this function needs it

    @wraps(function)
    def call(*args: Any, **options: Any) -> object:
        return function(*args, **options)

    return call


@pytest.fixture(name="build")
def _build(corp: Path, data_dir: Path) -> Iterator[Callable[..., list[Flask]]]:
    """Return a function that builds the tenants acme and globex with code that receives."""
    apps: list[Flask] = []

    def build(connect: str = "", *, views: str = VIEWS) -> list[Flask]:
        shop = leaks.write_endpoint(corp, "shop", resources=CODE + connect, blueprint=views)
        for name in ("acme", "globex"):
            values = {"APP_NAME": name, "SECRET_KEY": f"{name}-{KEY}", "BLUEPRINTS": [shop]}
            apps.append(create_app(values, data_dir=data_dir))
        return apps

    yield build
    for app in apps:
        close_app(app)


def _heard(app: Flask) -> list[str]:
    package = app.extensions["tenantry"][0].package
    heard: list[str] = sys.modules[f"{package}.resources"].__dict__["heard"]
    return heard


@pytest.mark.parametrize(
    "connect",
    [
        "LOGIN.connect(receive)",
        "LOGIN.connect(receive, weak=False)",
        "LOGIN.connect(receiver.receive)",
        "LOGIN.connect(receiver)",
        "LOGIN.connect(Record)",
        "LOGIN.connect(part)",
        "LOGIN.connect(call := decorated(receive))",
        "LOGIN.connect(receive, sender=None)",
    ],
)
def test_a_receiver_gets_no_signal_of_another_tenant(
    build: Callable[..., list[Flask]], connect: str
) -> None:
    """Each kind of receiver gets a library's signals only while its own app is current."""
    acme, globex = build(connect)
    answers = [
        Client(app).get(f"/login/{user}").json for app, user in ((acme, "ada"), (globex, "bob"))
    ]

    assert [{"heard": ["ada"]}, {"heard": ["bob"]}] == answers


def test_a_receiver_that_is_connected_during_a_request_hears_its_own_app(
    build: Callable[..., list[Flask]],
) -> None:
    """A receiver that a view connects for a moment hears its own app."""
    acme, globex = build()
    Client(acme).get("/follow/ada").close()
    Client(acme).get("/login/grace").close()

    assert (["ada"], []) == (_heard(acme), _heard(globex))


def test_a_signal_of_no_app_reaches_no_tenant(build: Callable[..., list[Flask]]) -> None:
    """A signal that is sent outside of all apps reaches no tenant's receiver."""
    apps = build("LOGIN.connect(receive)")
    LOGIN.send(user="root")

    assert [[], []] == [_heard(app) for app in apps]


def test_the_sender_of_a_signal_decides_before_the_current_app(
    build: Callable[..., list[Flask]],
) -> None:
    """A signal with an app as its sender reaches that app's receivers, whichever app is current."""
    acme, globex = build("LOGIN.connect(receive)")
    with globex.app_context():
        LOGIN.send(acme, user="ada")

    assert (["ada"], []) == (_heard(acme), _heard(globex))


def test_a_library_receives_the_signals_of_all_tenants(
    build: Callable[..., list[Flask]],
) -> None:
    """A receiver that no tenant's code defines receives the signals of every app."""
    heard: list[str] = []

    def receive(_: object, user: str) -> None:
        heard.append(user)

    with LOGIN.connected_to(receive):
        for app in build():
            Client(app).get("/login/ada").close()

    assert ["ada", "ada"] == heard


def test_a_receiver_can_be_disconnected(build: Callable[..., list[Flask]]) -> None:
    """A receiver that the tenant's code disconnects gets no more signals."""
    acme, _ = build("LOGIN.connect(receive)\nLOGIN.disconnect(receive)")
    Client(acme).get("/login/ada").close()

    assert [] == _heard(acme)


def test_a_receiver_of_flasks_signals_hears_its_own_app(
    build: Callable[..., list[Flask]],
) -> None:
    """A receiver of a Flask signal, whose sender is the app, hears its own app."""
    connect = "from flask import request_started as started\n@started.connect\n"
    connect += "def note(sender, **_):\n    heard.append(sender.name)\n"
    apps = build(connect, views="")
    for app in (*apps, Flask("plain")):
        Client(app).get("/shop/").close()

    assert [["tenant.acme"], ["tenant.globex"]] == [_heard(app) for app in apps]


def test_a_closed_app_leaves_no_receiver_behind(corp: Path, data_dir: Path) -> None:
    """A closed app can be freed, even if it has a strong receiver of a library's signal."""
    connect = "LOGIN.connect(receive, weak=False)\nLOGIN.connect(part, 'sender', weak=False)"
    shop = leaks.write_endpoint(corp, "shop", resources=CODE + connect)
    values = {"APP_NAME": "acme", "SECRET_KEY": KEY, "BLUEPRINTS": [shop]}
    app = create_app(values, data_dir=data_dir)
    during, gone = len(LOGIN.receivers), weakref.ref(app)
    close_app(app)
    del app
    gc.collect()

    assert (2, 0, None) == (during, len(LOGIN.receivers), gone())


def test_a_signal_without_receivers_stays_cheap() -> None:
    """A signal that nobody receives yields no receivers."""
    assert [] == list(request_started.receivers_for(object()))
