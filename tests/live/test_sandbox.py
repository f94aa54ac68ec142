"""The host and its commands work under the restrictions of the systemd unit."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from PIL import Image

import redis_server
from servers import DEADLINE_S, Server, debian_tool, program

pytestmark = pytest.mark.live

CONFIG = Path(__file__).parents[2] / "config"
SANDBOX = [
    sys.executable, str(Path(__file__).parents[1] / "sandbox.py"), str(CONFIG / "tenantry.service"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _systemd() -> None:
    """Skip the test without systemd's list of system call groups, or without libseccomp."""
    debian_tool("systemd-analyze", "systemd")


@pytest.fixture(name="redis", scope="module")
def _redis() -> Iterator[redis_server.Redis]:
    """Return a Redis server."""
    with redis_server.running() as server:
        yield server


def _post_image(port: int) -> tuple[int, dict[str, str], str | None]:
    content = io.BytesIO()
    Image.new("RGB", (640, 480), "red").save(content, "JPEG")
    connection = HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    connection.request("POST", "/acme/images/", content.getvalue())
    response = connection.getresponse()
    body = json.loads(response.read())
    connection.close()
    return response.status, body, response.getheader("RateLimit-Limit")


def test_the_sandbox_refuses_what_the_unit_refuses() -> None:
    """Using a forbidden capability, system call or address family raises a `PermissionError`."""
    code = """if True:
        import os, socket
        def is_refused(function, *arguments):
            try:
                function(*arguments)
            except PermissionError:
                return True
            return False
        print([
            is_refused(os.chroot, "/"),
            is_refused(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW),
            is_refused(os.sched_setaffinity, 0, os.sched_getaffinity(0)),
            is_refused(socket.socket),
        ])"""

    result = subprocess.run(
        [*SANDBOX, sys.executable, "-c", code], capture_output=True, text=True, check=False
    )

    assert ("[True, True, True, False]\n", "") == (result.stdout, result.stderr)


def test_a_host_serves_in_the_sandbox(
    start_server: Callable[..., Server],
    write_tenant: Callable[..., Path],
    postgres_url: str,
    redis: redis_server.Redis,
    tmp_path: Path,
) -> None:
    """PostgreSQL, Redis, images and the commands need nothing that the unit forbids."""
    keys = {"BLUEPRINTS": ["landing", "images"], "RATE_LIMIT": "1000/hour"}
    write_tenant("acme", DATABASE_URI=postgres_url, **keys)
    write_tenant("globex", BLUEPRINTS=["images"])
    environ = {"TENANTRY_RATE_LIMIT_STORAGE": redis.url}
    serve = [*SANDBOX, program("tenantry"), "serve", "--bind", "{bind}", "--workers", "2"]
    upgraded = _run("db upgrade --all", tmp_path, environ)
    server = start_server(serve, **environ)

    status, image, limit = _post_image(server.port)
    thumbnail, _ = server.get(f"/acme/images/{image['id']}/thumbnail?size=64")
    codes = {
        words: _run(words, tmp_path, environ)
        for words in ("check", "audit --json", "list --wait", "restart", "backup acme a.capsule")
    }
    after, _ = server.get(f"/acme/images/{image['id']}/content")

    assert upgraded[0] == 0, upgraded
    assert (201, "1000", 200, 200) == (status, limit, thumbnail.status, after.status)
    assert dict.fromkeys(codes, 0) == {words: code for words, (code, _) in codes.items()}, codes


def _run(words: str, folder: Path, environ: dict[str, str]) -> tuple[int, str]:
    folders = {
        "TENANTRY_TENANTS_DIR": str(folder / "tenants"),
        "TENANTRY_DATA_DIR": str(folder / "instance"),
        "TENANTRY_ADMIN_BIND": "off",
    }
    result = subprocess.run(
        [*SANDBOX, program("tenantry"), *words.split()],
        cwd=folder,
        env=os.environ | folders | environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr
