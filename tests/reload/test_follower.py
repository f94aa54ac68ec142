"""The follower, round by round: real files and loader, a clock moved by hand, small apps."""

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import ref

import pytest
from werkzeug.test import create_environ, run_wsgi_app

from conftest import KEY
from servers import DEADLINE_S
from tenantry.reload import follower as reload_module
from tenantry.reload.draining import SURVIVOR_S
from tenantry.reload.follower import Follower, FollowerLimits
from tenantry.reload.reconcile import Reconciler
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.routing.router import Router
from tenantry.tenants.folder import TenantsFolder
from tenantry.tenants.model import Tenant
from tenantry.tenants.operator_state import (
    DEFAULT_OPERATOR_STATE,
    OperatorState,
    operator_state_file,
    write_operator_state,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ACME = "http://localhost/acme"

WriteTenant = Callable[..., Path]


class Clock:
    """The time, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


class App:
    """Says its content's `APP_NAME`, in two chunks."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, _: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        """Answer."""
        start("200 OK", [])
        return [self.word.encode(), b""]


class Followed:
    """A follower, driven by hand."""

    def __init__(self, tenants_dir: Path, data_dir: Path, limits: FollowerLimits) -> None:
        self.clock = Clock()
        self.data_dir = data_dir
        self.built: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.mounts = Router(fallback=App("host"))
        folder = TenantsFolder(tenants_dir, clock=self.clock, wall_clock=lambda: time.time() + 3600)
        self.follower = Follower(
            folder, data_dir, self.mounts, self.build, limits, clock=self.clock
        )

    def build(self, tenant: Tenant) -> Instance:
        """Build an instance, or fail as a test wants it."""
        self.built.append(tenant.app_name)
        if error := self.errors.get(tenant.app_name):
            raise error
        app = App(tenant.app_name)
        return Instance(app, lambda: None, app, clock=self.clock)

    def is_busy(self) -> bool:
        """Whether something goes on in a lane."""
        return bool(self.follower._lanes.judging or self.follower._rebuilds.running)

    def go_on(self, for_s: float = 1.5) -> "Followed":
        """Do rounds for so long; what goes on in the lanes takes no time."""
        until = self.clock.now_s + for_s
        while self.clock.now_s <= until:
            self.follower.step()
            deadline = time.monotonic() + DEADLINE_S
            while self.is_busy():
                assert time.monotonic() < deadline, "waited in vain"
                self.follower._woken.wait(DEADLINE_S)
                self.follower._woken.clear()
                self.follower.step()
            self.clock.now_s += 0.11
        return self

    def get(self, path: str = "/acme/") -> str:
        """Return what is answered at a path: its status, or the word of who answered."""
        environ = create_environ(environ_overrides={"PATH_INFO": path, "SCRIPT_NAME": ""})
        body, status, _ = run_wsgi_app(self.mounts, environ, buffered=True)
        return b"".join(body).decode() if status.startswith("200") else status[:3]

    def mount(self, name: str = "acme") -> Mount:
        """Return the mount of a name."""
        [mount] = [one for one in self.mounts.mounts if one.name == name]
        return mount

    def states(self) -> dict[str, str]:
        """Return every mount's state."""
        return {mount.name: mount.state for mount in self.mounts.mounts}


@pytest.fixture(name="follow")
def _follow(tenants_dir: Path, data_dir: Path) -> Iterator[Callable[..., Followed]]:
    """Return a function that follows the tenants folder; ended after the test."""
    followed: list[Followed] = []

    def follow(max_active: int = 100, idle_timeout_s: float = 600.0) -> Followed:
        one = Followed(tenants_dir, data_dir, FollowerLimits(max_active, idle_timeout_s, 30.0))
        followed.append(one)
        return one

    yield follow
    for one in followed:
        one.follower.close()


Follow = Callable[..., Followed]


def test_files_come_change_and_go(follow: Follow, write_tenant: WriteTenant) -> None:
    """Each is in effect after it has settled; what was removed is a 404."""
    followed = follow().go_on()
    words = [followed.get()]
    path = write_tenant("acme", APP_NAME="v1")
    words.append(followed.go_on().get())
    write_tenant("acme", APP_NAME="v2")
    words.append(followed.go_on().get())
    path.unlink()

    words.append(followed.go_on().get())

    assert ["host", "v1", "v2", "host"] == words


def test_nothing_is_built_before_its_first_request(
    follow: Follow, write_tenant: WriteTenant
) -> None:
    """Neither by its appearance nor by a change of a tenant that has had no request."""
    write_tenant("acme", APP_NAME="v1")
    followed = follow().go_on()
    write_tenant("acme", APP_NAME="v2")

    followed.go_on()

    assert ([], "v2", ["v2"]) == (list(followed.built), followed.get(), followed.built)


@pytest.mark.parametrize("text", ["X = = 1\n", "SECRET_KEY = 'short'\n", ""])
def test_a_broken_change_keeps_the_old_and_is_logged_once(
    follow: Follow, write_tenant: WriteTenant, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The last good instance serves, stale; mended with the old content, nothing is built."""
    write_tenant("acme", APP_NAME="v1")
    followed = follow().go_on()
    followed.get()
    write_tenant("acme", text)
    seen = [followed.go_on(5).get(), followed.mount().state]
    count = len({record.getMessage() + str(record.__dict__["reason"]) for record in caplog.records})
    logged = len(caplog.records)
    write_tenant("acme", APP_NAME="v1")

    seen += [followed.go_on().get(), followed.mount().state]

    assert ["v1", "stale", "v1", "serving"] == seen
    assert (count, ["v1"]) == (logged, followed.built)
    assert count


def test_a_change_that_cannot_be_built_keeps_the_old(
    follow: Follow, write_tenant: WriteTenant, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again with growing pauses, logged once, and forgotten when the file changes."""
    write_tenant("acme", APP_NAME="v1")
    followed = follow().go_on()
    followed.get()
    followed.errors["v2"] = ValueError("no driver")
    write_tenant("acme", APP_NAME="v2")
    seen = [followed.go_on(10).get(), followed.mount().state]
    tries, logged = followed.built.count("v2"), len(caplog.records)
    write_tenant("acme", APP_NAME="v3")

    seen += [followed.go_on().get(), followed.mount().state]

    assert ["v1", "stale", "v3", "serving"] == seen
    assert (4, 1) == (tries, logged)


def test_a_build_that_comes_right_is_swapped_in(follow: Follow, write_tenant: WriteTenant) -> None:
    """Without a change of the file: what it needed is there again."""
    write_tenant("acme", APP_NAME="v1")
    followed = follow().go_on()
    followed.get()
    followed.errors["v2"] = ValueError("no")
    write_tenant("acme", APP_NAME="v2")
    followed.go_on()
    followed.errors.clear()

    followed.go_on(5)

    assert ("v2", "serving", "") == (
        followed.get(),
        followed.mount().state,
        followed.mount().reason,
    )


def test_a_clash_with_a_serving_tenant_is_refused_until_that_goes(
    follow: Follow, write_tenant: WriteTenant
) -> None:
    """Even where the newcomer's name comes first; then it is admitted by itself."""
    path = write_tenant("globex", URL_PREFIX="/shop", APP_NAME="globex")
    followed = follow().go_on()
    write_tenant("acme", URL_PREFIX="/shop", APP_NAME="acme")
    seen = [followed.go_on().get("/shop/"), followed.mount("acme").state]
    path.unlink()

    seen.append(followed.go_on().get("/shop/"))

    assert ["globex", "failed", "acme"] == seen


@pytest.mark.parametrize("order", [("acme", "globex", "initech"), ("initech", "globex", "acme")])
def test_at_start_the_first_by_name_is_accepted(
    follow: Follow, write_tenant: WriteTenant, order: tuple[str, ...]
) -> None:
    """Whatever order the verdicts come in; the third clashes only with the second, and serves."""
    write_tenant("acme", URL_PREFIX="/shop")
    write_tenant("globex", URL_PREFIX="/shop", SECRET_KEY=f"shared-{KEY}")
    write_tenant("initech", SECRET_KEY=f"shared-{KEY}")
    followed = follow()
    followed.follower.step()
    while followed.follower._lanes.judging:  # hold the verdicts back, and hand them over in order
        followed.follower._woken.wait(DEADLINE_S)
        followed.follower._woken.clear()
        for result in list(followed.follower._lanes.collect()):
            result()
    for name in order:
        followed.follower._admission.decide(name)
        followed.follower._admission.reconsider()

    followed.go_on()

    expected = {"acme": "idle", "globex": "failed", "initech": "idle"}
    assert expected == followed.states()


def test_a_prefix_changes_hands_in_one_step(follow: Follow, write_tenant: WriteTenant) -> None:
    """Acme leaves, globex takes its place: a path has one owner at each moment."""
    write_tenant("acme", APP_NAME="acme", URL_PREFIX="/shop")
    write_tenant("globex", APP_NAME="globex", URL_PREFIX="/other")
    followed = follow().go_on()
    seen = [(followed.get("/shop/"), followed.get("/other/"))]
    write_tenant("globex", APP_NAME="globex", URL_PREFIX="/shop")
    seen.append((followed.go_on().get("/shop/"), followed.get("/other/")))
    write_tenant("acme", APP_NAME="acme", URL_PREFIX="/new")

    seen.append((followed.go_on().get("/shop/"), followed.get("/new/")))

    assert [("acme", "globex"), ("acme", "globex"), ("globex", "acme")] == seen


def test_two_tenants_that_swap_prefixes_are_stale_until_one_is_free(
    follow: Follow, write_tenant: WriteTenant
) -> None:
    """Both keep their old content and name each other; a save with a free prefix lets both move."""
    for name in ("acme", "globex"):
        write_tenant(name, APP_NAME=name)
    followed = follow().go_on()
    served = [(followed.get("/acme/"), followed.get("/globex/"))]
    write_tenant("acme", APP_NAME="acme2", URL_PREFIX="/globex")
    write_tenant("globex", APP_NAME="globex2", URL_PREFIX="/acme")
    served.append((followed.go_on().get("/acme/"), followed.get("/globex/")))
    states = followed.states()
    reasons = [followed.mount(name).reason.partition(": ")[2] for name in ("acme", "globex")]
    write_tenant("acme", APP_NAME="acme2", URL_PREFIX="/free")
    served.append((followed.go_on().get("/acme/"), followed.get("/free/")))
    write_tenant("acme", APP_NAME="acme2", URL_PREFIX="/globex")

    served.append((followed.go_on().get("/acme/"), followed.get("/globex/")))

    assert [*[("acme", "globex")] * 2, *[("globex2", "acme2")] * 2] == served
    assert {"acme": "stale", "globex": "stale"} == states
    assert [
        f"'URL_PREFIX': /{owner} is the prefix of tenant {owner!r} too; choose another. To swap "
        "the prefixes of two tenants, first save one of their files with a free prefix."
        for owner in ("globex", "acme")
    ] == reasons


def test_a_renamed_file_hands_its_prefix_over(follow: Follow, write_tenant: WriteTenant) -> None:
    """Whoever asks while the file is renamed is answered, by the old owner or the new one."""
    path = write_tenant("acme", APP_NAME="v1", URL_PREFIX="/shop")
    followed = follow().go_on()
    followed.get("/shop/")
    path.rename(path.with_name("globex.py"))
    words = set()
    for _ in range(20):
        followed.go_on(0.05)
        words.add(followed.get("/shop/"))

    names = [mount.name for mount in followed.mounts.mounts]

    assert ({"v1"}, ["globex"]) == (words, names)


def test_a_renamed_file_is_no_error(
    follow: Follow, write_tenant: WriteTenant, caplog: pytest.LogCaptureFixture
) -> None:
    """Its key is the old name's until that is known to be gone: nobody is refused for it."""
    path = write_tenant("globex", APP_NAME="v1")
    followed = follow().go_on()
    path.rename(path.with_name("acme.py"))

    word = followed.go_on().get()

    assert ("v1", {"acme": "serving"}) == (word, followed.states())
    assert [] == [one for one in caplog.records if one.levelno >= logging.ERROR]


def test_a_clash_with_a_file_that_comes_back_is_one(
    follow: Follow, write_tenant: WriteTenant
) -> None:
    """It was gone for a moment only, and owns what it did."""
    path = write_tenant("globex", URL_PREFIX="/shop")
    followed = follow().go_on()
    text = path.read_text()
    path.unlink()
    write_tenant("acme", URL_PREFIX="/shop")
    followed.follower.wake(look=True)
    states = [followed.go_on(0.4).states()]
    path.write_text(text)

    states.append(followed.go_on().states())

    assert [{"acme": state, "globex": "idle"} for state in ("idle", "failed")] == states


def test_a_request_that_found_a_mount_before_it_left_is_answered(
    follow: Follow, write_tenant: WriteTenant
) -> None:
    """A mount is closed a while after it left the routing."""
    path = write_tenant("acme", APP_NAME="v1")
    followed = follow().go_on()
    mount = followed.mount()
    path.unlink()
    followed.go_on(0.5)
    while followed.mounts.mounts:
        followed.follower.step()
        followed.clock.now_s += 0.11

    body, status, _ = run_wsgi_app(mount, create_environ(base_url=ACME), buffered=True)

    assert ("200 OK", b"v1") == (status, b"".join(body))


@pytest.mark.parametrize(
    ("operator_state", "expected"),
    [
        (OperatorState(maintenance="Back at noon."), "503"),
        (OperatorState(is_disabled=True), "host"),
    ],
)
def test_operator_state_take_effect_and_survive(
    follow: Follow, write_tenant: WriteTenant, operator_state: OperatorState, expected: str
) -> None:
    """For running hosts, for those to come and through changes; and off again."""
    write_tenant("acme", APP_NAME="v1")
    followed = follow().go_on()
    seen = [followed.get()]
    write_operator_state(followed.data_dir, "acme", operator_state)
    seen += [followed.go_on().get(), follow().go_on().get()]
    write_tenant("acme", APP_NAME="v2")
    seen.append(followed.go_on().get())
    write_operator_state(followed.data_dir, "acme", DEFAULT_OPERATOR_STATE)

    seen.append(followed.go_on().get())

    assert ["v1", *[expected] * 3, "v2"] == seen


def test_unreadable_operator_state_disables_at_start_and_change_nothing_later(
    follow: Follow, write_tenant: WriteTenant
) -> None:
    """Whether the tenant is to be served is not known then; `list` tells why it is not."""
    write_tenant("acme", APP_NAME="v1")
    serving = follow().go_on()
    file = operator_state_file(serving.data_dir, "acme")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('{"maintenance": fal')
    new = follow().go_on()
    seen = [serving.go_on().get(), new.get()]
    [off] = new.follower.off
    write_operator_state(serving.data_dir, "acme", DEFAULT_OPERATOR_STATE)

    seen += [serving.go_on().get(), new.go_on().get()]

    assert ["v1", "host", "v1", "v1"] == seen
    assert off.reason.startswith(f"{file}: cannot be read (JSONDecodeError); remove the file, then")
    assert () == new.follower.off


def test_a_disabled_file_gives_its_claims_up(follow: Follow, write_tenant: WriteTenant) -> None:
    """`ENABLED = False` is as if it were not there."""
    write_tenant("acme", APP_NAME="acme", URL_PREFIX="/shop")
    write_tenant("globex", APP_NAME="globex", URL_PREFIX="/shop")
    followed = follow().go_on()
    words = [followed.get("/shop/")]
    write_tenant("acme", ENABLED=False, URL_PREFIX="/shop")

    words.append(followed.go_on().get("/shop/"))

    assert (["acme", "globex"], {"globex": "serving"}) == (words, followed.states())


def test_the_least_recently_used_are_put_to_sleep(
    follow: Follow, write_tenant: WriteTenant
) -> None:
    """Of more than `MAX_ACTIVE`; one with an open request stays, and the next one goes."""
    for name in ("acme", "globex", "initech", "umbrella"):
        write_tenant(name)
    followed = follow(max_active=2).go_on()
    body, _, _ = run_wsgi_app(followed.mount("acme"), create_environ(base_url=ACME))
    for name in ("globex", "initech", "umbrella"):
        followed.clock.now_s += 1
        followed.get(f"/{name}/")

    followed.go_on()

    body.close()  # type: ignore[attr-defined]
    assert ["serving", "idle", "idle", "serving"] == list(followed.states().values())


def test_an_idle_instance_is_put_to_sleep(follow: Follow, write_tenant: WriteTenant) -> None:
    """After `IDLE_TIMEOUT_S`; the next request wakes it, and a change does not."""
    write_tenant("acme", APP_NAME="v1")
    followed = follow(idle_timeout_s=60.0).go_on()
    words = [followed.get()]
    followed.clock.now_s += 61
    states = [followed.go_on().mount().state]
    write_tenant("acme", APP_NAME="v2")
    states.append(followed.go_on(2.5).mount().state)

    words.append(followed.get())

    assert (["v1", "v2"], ["idle", "idle"]) == (words, states)


def test_a_drain_that_takes_too_long_is_cut(
    follow: Follow, write_tenant: WriteTenant, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says how many requests."""
    write_tenant("acme", APP_NAME="v1")
    followed = follow().go_on()
    bodies = [run_wsgi_app(followed.mount(), create_environ(base_url=ACME))[0] for _ in range(2)]
    write_tenant("acme", APP_NAME="v2")

    followed.go_on(35)

    [record] = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert ("instance.drain_timed_out", 2) == (record.getMessage(), record.__dict__["cut_requests"])
    for body in bodies:
        body.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_leaking", [False, True])
def test_a_retired_app_is_freed_or_its_holders_are_logged(
    follow: Follow, write_tenant: WriteTenant, caplog: pytest.LogCaptureFixture, *, is_leaking: bool
) -> None:
    """A weak reference proves the one, a line in the log tells the other."""
    write_tenant("acme", APP_NAME="v1")
    followed = follow().go_on()
    followed.get()
    instance = followed.mount().instance
    assert instance is not None
    app = instance.app
    assert isinstance(app, ref)
    held = {"leak": app()} if is_leaking else {}
    del instance
    write_tenant("acme", APP_NAME="v2")

    followed.go_on(SURVIVOR_S + 3)

    gc.collect()
    survivors = [one.__dict__["held_by"] for one in caplog.records if "not_freed" in one.message]
    assert ([["dict with leak"]] if is_leaking else []) == survivors
    assert bool(held) == (app() is not None)


@pytest.mark.live
def test_many_files_changed_in_one_go(follow: Follow, write_tenant: WriteTenant) -> None:
    """Two hundred files: each is served with its newest content."""
    names = [f"t{number}" for number in range(200)]
    for name in names:
        write_tenant(name, APP_NAME=f"{name}-1")
    followed = follow().go_on()
    for name in names[:10]:
        followed.get(f"/{name}/")
    for name in names:
        write_tenant(name, APP_NAME=f"{name}-2")

    followed.go_on()

    assert [f"{name}-2" for name in names] == [followed.get(f"/{name}/") for name in names]


def test_without_its_folder_a_host_is_not_ready(follow: Follow, tenants_dir: Path) -> None:
    """Not at start; later a folder that vanishes changes nothing."""
    tenants_dir.rmdir()
    followed = follow()
    followed.follower.catch_up()
    ready = [followed.follower.is_ready.is_set()]
    tenants_dir.mkdir()
    followed.go_on()

    ready.append(followed.follower.is_ready.is_set())

    assert [False, True] == ready


def test_a_fault_in_one_tenant_stops_no_other(
    follow: Follow, write_tenant: WriteTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is odd about one, the round goes on, and the odd one is failed."""
    decide = Reconciler.decide

    def odd(self: Reconciler, name: str) -> None:
        if name == "acme":
            raise RuntimeError("odd")
        decide(self, name)

    monkeypatch.setattr(Reconciler, "decide", odd)
    write_tenant("acme")
    write_tenant("globex", APP_NAME="globex")

    followed = follow().go_on()

    assert ("globex", "503", "failed") == (
        followed.get("/globex/"),
        followed.get("/acme/"),
        followed.mount().state,
    )
    assert followed.follower.is_ready.is_set()


def test_an_edit_storm_builds_once_per_settled_content(
    follow: Follow, write_tenant: WriteTenant
) -> None:
    """Content that does not settle is not built; the last one is."""
    write_tenant("acme", APP_NAME="v0")
    followed = follow().go_on()
    followed.get()
    for number in range(1, 20):
        write_tenant("acme", APP_NAME=f"v{number}")
        followed.go_on(0.05)

    word = followed.go_on().get()

    assert ("v19", ["v0", "v19"]) == (word, followed.built)


def test_a_request_waits_for_the_verdict_on_its_file(
    follow: Follow, write_tenant: WriteTenant
) -> None:
    """While the host starts, a request has its tenant judged, and is then served."""
    write_tenant("acme", APP_NAME="v1")
    followed = follow()
    followed.follower._look()
    followed.follower._publish()
    words: list[str] = []
    asking = threading.Thread(target=lambda: words.append(followed.get()))
    asking.start()

    followed.go_on()

    asking.join(DEADLINE_S)
    assert ["v1"] == words


def test_a_look_that_is_asked_for_during_a_look_is_had(
    follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that comes while the folder is being read is not lost."""
    followed = follow()
    looks: list[float] = []
    look = followed.follower._folder.look

    def noted(share: float) -> object:
        looks.append(followed.clock.now_s)
        if len(looks) == 1:
            followed.follower.wake(look=True)
        return look(share)

    monkeypatch.setattr(followed.follower._folder, "look", noted)

    for _ in range(3):
        followed.follower.step()

    assert 2 == len(looks)


@pytest.mark.parametrize("change", ["write_text", "replace", "link", "event"])
def test_of_many_files_a_change_is_in_effect_within_two_seconds(
    follow: Follow, write_tenant: WriteTenant, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """By the poll, where each has its turn; and by events, where the poll takes its time."""
    monkeypatch.setattr(reload_module, "FEW", 0)
    others = [write_tenant(f"t{number}") for number in range(20)]
    path = write_tenant("acme", APP_NAME="v1")
    if change == "link":
        path = path.rename(path.parent / "_acme.py")
        (path.parent / "acme.py").symlink_to(path.name)
    followed = follow()
    followed.follower.trust_events(are_sure=change in ("link", "event"))
    before = followed.go_on(5.0).get()

    if change == "replace":
        others[0].with_name("_new.py").write_text(path.read_text().replace("v1", "v2"))
        others[0].with_name("_new.py").replace(path)
    else:
        path.write_text(path.read_text().replace("v1", "v2"))
    if change == "event":
        followed.follower.wake(look=True)

    assert ("v1", "v2") == (before, followed.go_on(1.9).get())


def test_of_many_files_each_has_its_turn_where_an_event_was_lost(
    follow: Follow, write_tenant: WriteTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later, but by itself."""
    monkeypatch.setattr(reload_module, "FEW", 0)
    for number in range(20):
        write_tenant(f"t{number}")
    path = write_tenant("acme", APP_NAME="v1")
    followed = follow()
    followed.follower.trust_events(are_sure=True)
    followed.go_on(5.0).get()

    path.write_text(path.read_text().replace("v1", "v2"))

    assert "v2" == followed.go_on(reload_module.SURE_TURN_S + 2).get()


def test_it_tells_when_much_has_been_made_that_stays(
    follow: Follow, write_tenant: WriteTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When all files are known, and again when many more tenants are awake: once each."""
    monkeypatch.setattr("tenantry.reload.eviction.MANY_AWAKE", 2)
    for name in ("acme", "globex", "initech"):
        write_tenant(name)
    followed, told = follow(), []
    followed.follower.call_when_settled(lambda: told.append(len(followed.built)))
    followed.go_on()

    for path in ("/acme/", "/globex/", "/initech/"):
        followed.get(path)
        followed.go_on()

    assert [0, 2] == told
