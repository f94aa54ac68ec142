"""While a command moves a tenant, the host answers 503 for it, and then serves it again."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest
from moved_shop import run_command

from image_files import picture
from servers import CONFIG_FILE, DEADLINE_S, Server, in_threads, running, wait_until
from tenantry.observability.control_socket import read_workers
from tenantry.observability.usage_store import totals
from tenantry.settings import HostSettings

pytestmark = pytest.mark.live

GUNICORN = ["gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--workers", "2", "--threads", "4"]


@pytest.fixture(name="server")
def _server(settings: HostSettings, tmp_path: Path) -> Iterator[Server]:
    """Run a server with the tenant shop, which has one image, and the tenant neighbour."""
    for words in (("shop", "--endpoint", "landing", "--endpoint", "images"), ("neighbour",)):
        assert 0 == run_command(settings, "new", *words)[0]
    folders = {
        "TENANTRY_TENANTS_DIR": str(settings.tenants_dir),
        "TENANTRY_DATA_DIR": str(settings.data_dir),
    }
    with running(GUNICORN, tmp_path, **folders) as server:
        upload(server, 9)
        yield server


def upload(server: Server, width: int) -> None:
    """Upload an image to the tenant at /shop."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
    with closing(connection):
        connection.request("POST", "/shop/images/", picture("PNG", (width, 9)))
        assert 201 == connection.getresponse().status


def is_served(settings: HostSettings) -> bool:
    """Whether every worker serves a tenant again."""
    mounts = [mount for worker in read_workers(settings.data_dir) for mount in worker.mounts]
    return len(mounts) == 4 and all(mount["state"] != "maintenance" for mount in mounts)


def images(server: Server) -> list[int]:
    """Return the widths of the images of the tenant at /shop."""
    response, body = server.get("/shop/images/")
    assert 200 == response.status, (response.status, body)
    return [image["width"] for image in json.loads(body)["images"]]


def test_a_tenant_answers_503_while_it_moves(server: Server, settings: HostSettings) -> None:
    """Requests during `rename`, `restore --replace` and `remove` get 503, and never another error.

    The move does not affect another tenant.
    """
    seen: Counter[tuple[str, int]] = Counter()

    def visit(stop: threading.Event) -> None:
        while not stop.is_set():
            for name in ("shop", "neighbour"):
                with suppress(ConnectionError):
                    seen[name, server.get(f"/{name}/")[0].status] += 1

    with in_threads(visit):
        renamed = run_command(settings, "rename", "shop", "store")
        wait_until(lambda: is_served(settings))
        assert [9] == images(server)
        saved = run_command(settings, "backup", "store", "a")
        assert 0 == saved[0], saved
        upload(server, 8)
        replaced = run_command(settings, "restore", "a", "--replace", "--prefix", "/shop")
        assert 0 == replaced[0], replaced
        wait_until(lambda: is_served(settings))
        assert [9] == images(server)

    assert [0, 0, 0] == [renamed[0], saved[0], replaced[0]], (renamed, saved, replaced)
    assert {201, 503} == {status for name, status in seen if name == "shop"}, seen
    assert {201} == {status for name, status in seen if name == "neighbour"}, seen

    removed = run_command(settings, "remove", "store")
    wait_until(lambda: server.get("/shop/")[0].status == 404)

    assert 0 == removed[0], removed
    assert not (settings.data_dir / "store").exists()
    used = totals(settings.data_dir)
    assert used["store"].requests > 5
    assert "shop" not in used or used["shop"].requests < 5
