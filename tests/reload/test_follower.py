"""The follower notices changed tenant files and replaces apps, in steps that a test controls."""

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
from tenantry.reload import follower as follower_module
from tenantry.reload.draining import LEAK_CHECK_AFTER_S
from tenantry.reload.follower import Follower
from tenantry.reload.reconcile import Reconciler
from tenantry.routing.instance import Instance
from tenantry.routing.mount import Mount
from tenantry.routing.router import Router
from tenantry.settings import HostSettings
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
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Return the time that the test has set."""
        return self.now_s


class App:
    """A WSGI app that responds with a word, in two chunks."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, _: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        """Answer every request with the word."""
        start("200 OK", [])
        return [self.word.encode(), b""]


class Followed:
    """A follower of the tenants folder that a test drives round by round."""

    def __init__(self, settings: HostSettings) -> None:
        self.clock = Clock()
        self.data_dir = settings.data_dir
        self.built: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.router = Router(fallback=App("host"))
        folder = TenantsFolder(
            settings.tenants_dir, clock=self.clock, wall_clock=lambda: time.time() + 3600
        )
        self.follower = Follower(folder, settings, self.router, self.build, clock=self.clock)

    def build(self, tenant: Tenant) -> Instance:
        """Build an app, or raise the error that a test has set for this content."""
        self.built.append(tenant.app_name)
        if error := self.errors.get(tenant.app_name):
            raise error
        app = App(tenant.app_name)
        return Instance(app, lambda: None, app, clock=self.clock)

    def is_busy(self) -> bool:
        """Whether a worker thread has a job."""
        return bool(self.follower._workers.validating or self.follower._rebuilds._running)

    def go_on(self, for_s: float = 1.5) -> "Followed":
        """Let the follower work for the given time.

        The clock stands still while worker threads run.
        """
        until = self.clock.now_s + for_s
        while self.clock.now_s <= until:
            self.follower.step()
            deadline = time.monotonic() + DEADLINE_S
            while self.is_busy():
                assert time.monotonic() < deadline, "a worker thread did not end"
                self.follower._woken.wait(DEADLINE_S)
                self.follower._woken.clear()
                self.follower.step()
            self.clock.now_s += 0.11
        return self

    def get(self, path: str = "/acme/") -> str:
        """Return the word in the response for a path, or the status if that is not 200."""
        environ = create_environ(environ_overrides={"PATH_INFO": path, "SCRIPT_NAME": ""})
        body, status, _ = run_wsgi_app(self.router, environ, buffered=True)
        return b"".join(body).decode() if status.startswith("200") else status[:3]

    def mount(self, name: str = "acme") -> Mount:
        """Return a tenant's mount."""
        [mount] = [mount for mount in self.router.mounts if mount.name == name]
        return mount

    def states(self) -> dict[str, str]:
        """Return the state of every tenant."""
        return {mount.name: mount.state for mount in self.router.mounts}


@pytest.fixture(name="follow")
def _follow(settings: HostSettings) -> Iterator[Callable[..., Followed]]:
    """Return a function that follows the tenants folder until the test ends."""
    all_followed: list[Followed] = []

    def follow(max_active: int = 100, idle_timeout_s: float = 600.0) -> Followed:
        limits = {"max_active": max_active, "idle_timeout_s": idle_timeout_s}
        all_followed.append(Followed(settings.model_copy(update=limits)))
        return all_followed[-1]

    yield follow
    for followed in all_followed:
        followed.follower.close()


Follow = Callable[..., Followed]


def test_files_appear_change_and_disappear(follow: Follow, write_tenant: WriteTenant) -> None:
    """A change of a tenant file takes effect once the file has been stable for a moment."""
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
    """A new or changed tenant file causes no build before the tenant's first request."""
    write_tenant("acme", APP_NAME="v1")
    followed = follow().go_on()
    write_tenant("acme", APP_NAME="v2")

    followed.go_on()

    assert ([], "v2", ["v2"]) == (list(followed.built), followed.get(), followed.built)


@pytest.mark.parametrize("text", ["X = = 1\n", "SECRET_KEY = 'short'\n", ""])
def test_a_broken_change_is_not_served_and_logged_once(
    follow: Follow, write_tenant: WriteTenant, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After a broken change of a tenant file, the old app serves, and one log line says why."""
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


def test_a_change_that_cannot_be_built_is_not_served(
    follow: Follow, write_tenant: WriteTenant, caplog: pytest.LogCaptureFixture
) -> None:
    """If a changed tenant cannot be built, the old app serves, and the build is repeated.

    The pauses between builds grow, and the failure is logged once.
    """
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


def test_a_repeated_build_that_succeeds_is_swapped_in(
    follow: Follow, write_tenant: WriteTenant
) -> None:
    """If a repeated build of a changed tenant succeeds, the new app replaces the old app."""
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


def test_a_prefix_belongs_to_the_tenant_that_serves_there(
    follow: Follow, write_tenant: WriteTenant
) -> None:
    """A new tenant with the URL prefix of a served tenant is rejected until that tenant is gone."""
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
    """If tenants conflict at start, the first by name is accepted, whatever loads first."""
    write_tenant("acme", URL_PREFIX="/shop")
    write_tenant("globex", URL_PREFIX="/shop", SECRET_KEY=f"shared-{KEY}")
    write_tenant("initech", SECRET_KEY=f"shared-{KEY}")
    followed = follow()
    followed.follower.step()
    # finish all validations before the host compares the tenants
    while followed.follower._workers.validating:
        followed.follower._woken.wait(DEADLINE_S)
        followed.follower._woken.clear()
        for handle_result in list(followed.follower._workers.collect()):
            handle_result()
    for name in order:
        followed.follower._reconciler.reconcile(name)
        followed.follower._reconciler.reconcile_again()

    followed.go_on()

    expected = {"acme": "idle", "globex": "failed", "initech": "idle"}
    assert expected == followed.states()


def test_a_prefix_changes_hands_in_one_step(follow: Follow, write_tenant: WriteTenant) -> None:
    """When one tenant gives up a URL prefix, a tenant that waits for it gets it immediately."""
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
    """If two tenants swap URL prefixes, both keep their prefixes until one takes a free prefix."""
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
        f"'URL_PREFIX': /{owner} is also the prefix of tenant {owner!r}; choose another. To swap "
        "the prefixes of two tenants, first save one of their files with a free prefix."
        for owner in ("globex", "acme")
    ] == reasons


def test_a_renamed_file_hands_its_prefix_over(follow: Follow, write_tenant: WriteTenant) -> None:
    """While a tenant file is renamed, its URL prefix always answers."""
    path = write_tenant("acme", APP_NAME="v1", URL_PREFIX="/shop")
    followed = follow().go_on()
    followed.get("/shop/")
    path.rename(path.with_name("globex.py"))
    words = set()
    for _ in range(20):
        followed.go_on(0.05)
        words.add(followed.get("/shop/"))

    names = [mount.name for mount in followed.router.mounts]

    assert ({"v1"}, ["globex"]) == (words, names)


def test_a_renamed_file_causes_no_error(
    follow: Follow, write_tenant: WriteTenant, caplog: pytest.LogCaptureFixture
) -> None:
    """Renaming a tenant file is not an error, although both names have the same secret key."""
    path = write_tenant("globex", APP_NAME="v1")
    followed = follow().go_on()
    path.rename(path.with_name("acme.py"))

    word = followed.go_on().get()

    assert ("v1", {"acme": "serving"}) == (word, followed.states())
    assert [] == [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_file_that_comes_back_keeps_its_prefix(follow: Follow, write_tenant: WriteTenant) -> None:
    """A tenant file that disappears for a moment keeps its URL prefix."""
    path = write_tenant("globex", URL_PREFIX="/shop")
    followed = follow().go_on()
    text = path.read_text()
    path.unlink()
    write_tenant("acme", URL_PREFIX="/shop")
    followed.follower.scan_soon()
    states = [followed.go_on(0.4).states()]
    path.write_text(text)

    states.append(followed.go_on().states())

    assert [{"acme": state, "globex": "idle"} for state in ("idle", "failed")] == states


def test_a_request_that_found_a_removed_mount_is_answered(
    follow: Follow, write_tenant: WriteTenant
) -> None:
    """A removed tenant still answers requests that found it before the removal."""
    path = write_tenant("acme", APP_NAME="v1")
    followed = follow().go_on()
    mount = followed.mount()
    path.unlink()
    followed.go_on(0.5)
    while followed.router.mounts:
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
def test_operator_state_takes_effect_and_survives(
    follow: Follow, write_tenant: WriteTenant, operator_state: OperatorState, expected: str
) -> None:
    """A tenant stays in maintenance or disabled in all workers, even if its file changes."""
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


def test_unreadable_operator_state_disables_only_at_start(
    follow: Follow, write_tenant: WriteTenant
) -> None:
    """If a tenant's operator state is unreadable, a new worker disables the tenant."""
    write_tenant("acme", APP_NAME="v1")
    serving = follow().go_on()
    file = operator_state_file(serving.data_dir, "acme")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('{"maintenance": fal')
    new = follow().go_on()
    seen = [serving.go_on().get(), new.get()]
    [disabled] = new.follower.disabled
    write_operator_state(serving.data_dir, "acme", DEFAULT_OPERATOR_STATE)

    seen += [serving.go_on().get(), new.go_on().get()]

    assert ["v1", "host", "v1", "v1"] == seen
    assert disabled.reason.startswith(
        f"{file}: cannot be read (JSONDecodeError); remove the file, then"
    )
    assert () == new.follower.disabled


def test_a_disabled_file_frees_its_prefix(follow: Follow, write_tenant: WriteTenant) -> None:
    """A tenant file with `ENABLED = False` frees its URL prefix."""
    write_tenant("acme", APP_NAME="acme", URL_PREFIX="/shop")
    write_tenant("globex", APP_NAME="globex", URL_PREFIX="/shop")
    followed = follow().go_on()
    words = [followed.get("/shop/")]
    write_tenant("acme", ENABLED=False, URL_PREFIX="/shop")

    words.append(followed.go_on().get("/shop/"))

    assert (["acme", "globex"], {"globex": "serving"}) == (words, followed.states())


def test_the_least_recently_used_instances_are_evicted(
    follow: Follow, write_tenant: WriteTenant
) -> None:
    """At most `MAX_ACTIVE` apps stay built, but an app with an open request is not evicted."""
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


def test_an_idle_instance_is_evicted(follow: Follow, write_tenant: WriteTenant) -> None:
    """An app that is idle for `IDLE_TIMEOUT_S` is evicted, and the next request builds it again."""
    write_tenant("acme", APP_NAME="v1")
    followed = follow(idle_timeout_s=60.0).go_on()
    words = [followed.get()]
    followed.clock.now_s += 61
    states = [followed.go_on().mount().state]
    write_tenant("acme", APP_NAME="v2")
    states.append(followed.go_on(2.5).mount().state)

    words.append(followed.get())

    assert (["v1", "v2"], ["idle", "idle"]) == (words, states)


def test_requests_that_drain_too_long_are_cut(
    follow: Follow, write_tenant: WriteTenant, caplog: pytest.LogCaptureFixture
) -> None:
    """If an old app takes too long to finish its requests, the log says how many were cut."""
    write_tenant("acme", APP_NAME="v1")
    followed = follow().go_on()
    bodies = [run_wsgi_app(followed.mount(), create_environ(base_url=ACME))[0] for _ in range(2)]
    write_tenant("acme", APP_NAME="v2")

    followed.go_on(35)

    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert ("instance.drain_timed_out", 2) == (record.getMessage(), record.__dict__["cut_requests"])
    for body in bodies:
        body.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_leaking", [False, True])
def test_a_retired_app_is_freed_or_what_holds_it_is_logged(
    follow: Follow, write_tenant: WriteTenant, caplog: pytest.LogCaptureFixture, *, is_leaking: bool
) -> None:
    """A replaced app is freed, or the log says what keeps it in memory."""
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

    followed.go_on(LEAK_CHECK_AFTER_S + 3)

    gc.collect()
    held_by = [r.__dict__["held_by"] for r in caplog.records if "not_freed" in r.message]
    assert ([["dict with leak"]] if is_leaking else []) == held_by
    assert bool(held) == (app() is not None)


@pytest.mark.live
def test_many_files_change_at_once(follow: Follow, write_tenant: WriteTenant) -> None:
    """If 200 tenant files change at once, every tenant soon serves its newest version."""
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


def test_without_the_folder_a_host_is_not_ready(follow: Follow, tenants_dir: Path) -> None:
    """A host without a tenants folder becomes ready when the folder appears."""
    tenants_dir.rmdir()
    followed = follow()
    followed.follower.catch_up()
    ready = [followed.follower.is_ready.is_set()]
    tenants_dir.mkdir()
    followed.go_on()

    ready.append(followed.follower.is_ready.is_set())

    assert [False, True] == ready


def test_an_internal_error_affects_one_tenant(
    follow: Follow, write_tenant: WriteTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An internal error while the host handles one tenant file affects only that tenant."""
    reconcile = Reconciler.reconcile

    def fail_for_acme(self: Reconciler, name: str) -> None:
        if name == "acme":
            raise RuntimeError("odd")
        reconcile(self, name)

    monkeypatch.setattr(Reconciler, "reconcile", fail_for_acme)
    write_tenant("acme")
    write_tenant("globex", APP_NAME="globex")

    followed = follow().go_on()

    assert ("globex", "503", "failed") == (
        followed.get("/globex/"),
        followed.get("/acme/"),
        followed.mount().state,
    )
    assert followed.follower.is_ready.is_set()


def test_rapid_edits_cause_one_build(follow: Follow, write_tenant: WriteTenant) -> None:
    """A tenant file that is saved many times in quick succession is built once."""
    write_tenant("acme", APP_NAME="v0")
    followed = follow().go_on()
    followed.get()
    for number in range(1, 20):
        write_tenant("acme", APP_NAME=f"v{number}")
        followed.go_on(0.05)

    word = followed.go_on().get()

    assert ("v19", ["v0", "v19"]) == (word, followed.built)


def test_a_request_waits_until_its_file_is_reconciled(
    follow: Follow, write_tenant: WriteTenant
) -> None:
    """While the host starts, a request waits until its tenant file has been validated."""
    write_tenant("acme", APP_NAME="v1")
    followed = follow()
    followed.follower._scan_folder()
    followed.follower._publish()
    words: list[str] = []
    request = threading.Thread(target=lambda: words.append(followed.get()))
    request.start()

    followed.go_on()

    request.join(DEADLINE_S)
    assert ["v1"] == words


def test_an_event_during_a_scan_causes_another_scan(
    follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file event that arrives during a scan of the tenants folder causes another scan."""
    followed = follow()
    scans: list[float] = []
    look = followed.follower._folder.look

    def look_and_count(share: float) -> object:
        scans.append(followed.clock.now_s)
        if len(scans) == 1:
            followed.follower.scan_soon()
        return look(share)

    monkeypatch.setattr(followed.follower._folder, "look", look_and_count)

    for _ in range(3):
        followed.follower.step()

    assert 2 == len(scans)


@pytest.mark.parametrize("change", ["write_text", "replace", "link", "event"])
def test_in_a_large_folder_a_change_takes_effect_within_two_seconds(
    follow: Follow, write_tenant: WriteTenant, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Even in a large folder, a changed tenant file takes effect within two seconds."""
    monkeypatch.setattr(follower_module, "SMALL_FOLDER", 0)
    others = [write_tenant(f"t{number}") for number in range(20)]
    path = write_tenant("acme", APP_NAME="v1")
    if change == "link":
        path = path.rename(path.parent / "_acme.py")
        (path.parent / "acme.py").symlink_to(path.name)
    followed = follow()
    followed.follower.set_events_reliable(change in ("link", "event"))
    before = followed.go_on(5.0).get()

    if change == "replace":
        others[0].with_name("_new.py").write_text(path.read_text().replace("v1", "v2"))
        others[0].with_name("_new.py").replace(path)
    else:
        path.write_text(path.read_text().replace("v1", "v2"))
    if change == "event":
        followed.follower.scan_soon()

    assert ("v1", "v2") == (before, followed.go_on(1.9).get())


def test_in_a_large_folder_a_slow_scan_finds_a_change_without_an_event(
    follow: Follow, write_tenant: WriteTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large folder, a slow scan finds a change whose file event was lost."""
    monkeypatch.setattr(follower_module, "SMALL_FOLDER", 0)
    for number in range(20):
        write_tenant(f"t{number}")
    path = write_tenant("acme", APP_NAME="v1")
    followed = follow()
    followed.follower.set_events_reliable(True)
    followed.go_on(5.0).get()

    path.write_text(path.read_text().replace("v1", "v2"))

    assert "v2" == followed.go_on(follower_module.SLOW_SCAN_S + 2).get()


def test_growth_is_reported(
    follow: Follow, write_tenant: WriteTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host reports growth once it knows all tenant files, and again when many apps exist."""
    monkeypatch.setattr("tenantry.reload.eviction.GROWTH", 2)
    for name in ("acme", "globex", "initech"):
        write_tenant(name)
    followed, reported = follow(), []
    followed.follower.on_growth = lambda: reported.append(len(followed.built))
    followed.go_on()

    for path in ("/acme/", "/globex/", "/initech/"):
        followed.get(path)
        followed.go_on()

    assert [0, 2] == reported
