"""Only the user of a host and its commands can access the files that they create."""

import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from servers import DEADLINE_S, Server, program, running

pytestmark = pytest.mark.live

COMMANDS = (
    "maintenance on globex",
    "backup acme acme.capsule",
    "clone acme initech",
    "plan --save plan.json",
    "db upgrade --all",
    "usage",
)


def _open_paths(folder: Path) -> list[str]:
    """Return the paths in a folder that the group or others can access."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.lstat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) and not path.is_symlink()
    )


def _post_image(path: Path) -> bytes:
    """Send an invalid upload through a Unix socket, and return the start of the response."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(path))
        head = b"POST /acme/images/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
        client.sendall(head + b"Connection: close\r\n\r\nx")
        return client.recv(12)


def test_everything_is_private_under_any_umask(tmp_path: Path) -> None:
    """With the umask 0, the data folder, databases, sockets, locks and capsules are private."""
    shell = ["sh", "-c", f"umask 0; exec {program('tenantry')} $0 $@"]
    for name in ("acme", "globex"):
        words = f"new {name} --endpoint landing --endpoint images"
        subprocess.run([*shell, *words.split()], cwd=tmp_path, check=True)

    def is_up(_: Server) -> bool:
        return (tmp_path / "t.sock").exists()

    serve = [*shell, "serve", "--bind", "unix:t.sock", "--workers", "1"]
    with running(serve, tmp_path, is_ready=is_up):
        response = _post_image(tmp_path / "t.sock")
        for words in COMMANDS:
            subprocess.run([*shell, *words.split()], cwd=tmp_path, check=True, timeout=DEADLINE_S)
        opened = _open_paths(tmp_path)

    expected = ["tenants", "tenants/acme.py", "tenants/globex.py", "tenants/initech.py"]
    assert b"HTTP/1.1 4" == response[:10]
    assert expected == [path for path in opened if not path.startswith("server-")]
    modes = {oct((tmp_path / path).stat().st_mode & 0o777) for path in expected}
    assert {"0o755", "0o644"} == modes


def test_a_proxy_in_the_group_can_get_access_to_the_socket(
    tmp_path: Path, write_tenant: Callable[..., Path]
) -> None:
    """Gunicorn's option `--umask` opens only the Unix socket for a group."""
    write_tenant("acme")
    serve = ["tenantry", "serve", "--bind", "unix:t.sock", "--workers", "1"]
    with running(
        serve,
        tmp_path,
        is_ready=lambda _: (tmp_path / "t.sock").exists(),
        GUNICORN_CMD_ARGS="--umask 007",
    ):
        _post_image(tmp_path / "t.sock")
        modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("t.sock", "instance")]

    assert [0o770, 0o700] == modes
