"""A tenant that served keeps its address and its last good version after the host has ended."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from werkzeug.test import Client

from servers import wait_until
from tenantry.host import Host
from tenantry.settings import HostSettings
from tenantry.tenants.last_good import Claims, LastGood, forget_last_good

WriteTenant = Callable[..., Path]

BROKEN = "SECRET_KEY = "


@contextmanager
def _serving(settings: HostSettings) -> Iterator[Host]:
    """Start a host, and save what serves before the host ends."""
    host = Host(settings)
    host.start()
    try:
        wait_until(host.follower.is_ready.is_set)
        yield host
        host.follower._last_good.save()
    finally:
        host.close()


def _ask(host: Host, path: str) -> tuple[int, str]:
    """Return the status of a GET, and the name of the tenant that serves the path."""
    mount = host.router.at(path.rstrip("/"))
    return Client(host).get(path).status_code, "" if mount is None else mount.name


def test_a_tenant_keeps_its_address(settings: HostSettings, write_tenant: WriteTenant) -> None:
    """A tenant whose name comes first does not take the address of a tenant that served before."""
    write_tenant("zoo", URL_PREFIX="/shop")
    with _serving(settings):
        pass  # the record contains the tenant, even if no request has built its app
    write_tenant("aaa", URL_PREFIX="/shop")
    with _serving(settings) as host:
        answer = _ask(host, "/shop/")
        states = [(mount.name, mount.state) for mount in host.router.mounts]

    assert ((201, "zoo"), [("aaa", "failed"), ("zoo", "serving")]) == (answer, states)


def test_a_removed_tenant_keeps_nothing(settings: HostSettings, write_tenant: WriteTenant) -> None:
    """If a tenant file is removed while no host runs, its address is free and its copy deleted."""
    zoo = write_tenant("zoo", URL_PREFIX="/shop")
    with _serving(settings):
        pass
    zoo.unlink()
    write_tenant("aaa", URL_PREFIX="/shop")
    with _serving(settings) as host:
        answer = _ask(host, "/shop/")
    record = {path.name for path in (settings.data_dir / ".last_good").iterdir()}

    assert ((201, "aaa"), {"aaa.py", "claims.json", ".lock"}) == (answer, record)


def test_a_new_tenant_does_not_serve_the_version_of_a_removed_one(
    settings: HostSettings, write_tenant: WriteTenant
) -> None:
    """A tenant that is removed and created again while no host runs begins without a record."""
    write_tenant("zoo", URL_PREFIX="/shop")
    with _serving(settings):
        pass
    forget_last_good(settings.data_dir, "zoo")
    write_tenant("zoo", BROKEN)
    with _serving(settings) as host:
        status, _ = _ask(host, "/shop/")

    assert 404 == status
    assert not (settings.data_dir / ".last_good/zoo.py").exists()


def test_a_broken_file_leaves_the_last_good_version(
    settings: HostSettings, write_tenant: WriteTenant
) -> None:
    """A file that was broken while no host ran is stale, and a repaired file replaces it."""
    write_tenant("zoo", URL_PREFIX="/shop")
    with _serving(settings):
        pass
    write_tenant("zoo", BROKEN)
    with _serving(settings) as host:
        answer, mount = _ask(host, "/shop/"), host.router.mounts[0]
        state, reason = mount.state, mount.reason
        write_tenant("zoo", URL_PREFIX="/shop", APP_NAME="new")
        host.follower.scan_soon()
        wait_until(lambda: mount.state == "serving")
        name = mount.tenant.app_name if mount.tenant else ""

    assert ((201, "zoo"), "stale", True) == (answer, state, "zoo.py" in reason)
    assert "new" == name


def test_a_file_in_conflict_leaves_the_last_good_version(
    settings: HostSettings, write_tenant: WriteTenant
) -> None:
    """A tenant whose new file claims another tenant's address stays at its former address."""
    write_tenant("acme")
    write_tenant("zoo", URL_PREFIX="/shop")
    with _serving(settings):
        pass
    write_tenant("zoo", URL_PREFIX="/acme")
    with _serving(settings) as host:
        answers = [_ask(host, "/shop/"), _ask(host, "/acme/")]

    assert [(201, "zoo"), (201, "acme")] == answers


@pytest.mark.parametrize("prefix", ["/shop", "/new"])
def test_a_version_that_cannot_be_built_leaves_the_last_good_version(
    settings: HostSettings,
    write_tenant: WriteTenant,
    write_endpoint: Callable[[str, str], str],
    prefix: str,
) -> None:
    """If a version from before the start cannot be built, the last good version serves."""
    bad = write_endpoint("bad", "raise ValueError('no')\n")
    write_tenant("zoo", URL_PREFIX="/shop")
    with _serving(settings) as host:
        assert (201, "zoo") == _ask(host, "/shop/")
    write_tenant("zoo", URL_PREFIX=prefix, BLUEPRINTS=[bad])
    with _serving(settings) as host:
        first = _ask(host, f"{prefix}/")[0]
        wait_until(lambda: _ask(host, "/shop/") == (201, "zoo"))
        mount = host.router.mounts[0]
        wait_until(lambda: mount.state == "stale")
        reason = mount.reason

    assert 503 == first or prefix == "/shop"
    assert "cannot be built" in reason


def test_only_this_user_can_read_the_record(
    settings: HostSettings, write_tenant: WriteTenant
) -> None:
    """The folder has mode 0700, and its files have mode 0600, because texts can have secrets."""
    write_tenant("zoo")
    with _serving(settings):
        pass
    folder = settings.data_dir / ".last_good"

    assert {0o600} == {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert 0o700 == folder.stat().st_mode & 0o777


@pytest.mark.parametrize("damage", ["{", "[]", '{"zoo": 1}'])
def test_a_damaged_record_is_ignored(
    settings: HostSettings, write_tenant: WriteTenant, damage: str
) -> None:
    """With a damaged record, the host starts as if no tenant had served."""
    folder = settings.data_dir / ".last_good"
    folder.mkdir(parents=True)
    (folder / "claims.json").write_text(damage)
    write_tenant("zoo")
    with _serving(settings) as host:
        answer = _ask(host, "/zoo/")

    assert ((201, "zoo"), ["zoo"]) == (
        answer,
        list(json.loads((folder / "claims.json").read_text())),
    )


def test_a_record_that_cannot_be_written_is_logged_once(
    settings: HostSettings, write_tenant: WriteTenant, caplog: pytest.LogCaptureFixture
) -> None:
    """If the record cannot be written, the host serves, and logs only the first error."""
    settings.data_dir.mkdir()
    (settings.data_dir / ".last_good").touch()
    write_tenant("zoo")
    with _serving(settings) as host:
        host.follower._last_good.save()
        answer = _ask(host, "/zoo/")

    errors = [one.message for one in caplog.records if one.levelno >= logging.ERROR]
    assert ((201, "zoo"), ["last_good.save_failed"]) == (answer, errors)
    assert host.follower._last_good._unsaved


def test_a_command_that_inspects_tenants_writes_no_record(
    settings: HostSettings, write_tenant: WriteTenant
) -> None:
    """A host that only loads the tenants neither reads nor writes the record."""
    write_tenant("zoo")
    host = Host(settings)
    host.load()
    host.follower._last_good.save()
    host.close()

    assert not (settings.data_dir / ".last_good").exists()


def test_an_empty_folder_makes_the_host_forget_nothing(data_dir: Path, tenants_dir: Path) -> None:
    """An empty folder at start deletes no record, as its volume may be mounted later."""
    record = LastGood(data_dir, tenants_dir)
    record.open()
    record.claims["acme"] = Claims("digest", "/acme")

    record.end_start([])

    assert ["acme"] == [*record.claims]
