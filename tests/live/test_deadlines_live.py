"""DEADLINE_ACTION = "answer" on a real server: clients are answered in time; nothing is lost."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from hanging import make_hanging_site
from servers import CONFIG_FILE, DEADLINE_S, program, running

pytestmark = pytest.mark.live


def test_clients_get_504_at_the_deadline(tmp_path: Path) -> None:
    """The overdue request goes on, counted as stuck; the next requests are served."""
    make_hanging_site(tmp_path, acme={"DEADLINE_S": 0.3, "DEADLINE_ACTION": "answer"})
    command = ["gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--workers", "1"]
    with running(command, tmp_path, "/acme/") as server:
        answers = [server.get(path) for path in (f"/acme/sleep/{DEADLINE_S}", "/acme/")]
        listed = [program("tenantry"), "list", "--json"]
        said = subprocess.run(listed, cwd=tmp_path, capture_output=True, check=True).stdout
        os.killpg(server.process.pid, signal.SIGKILL)  # nobody waits for the sleeping request

    assert [504, 200] == [response.status for response, _ in answers]
    response, body = answers[0]
    assert "close" == response.headers["Connection"]
    assert json.loads(body)["request_id"] == response.headers["X-Request-ID"] != ""
    assert [1] == [worker["stuck"] for worker in json.loads(said)[0]["workers"]]


def test_another_server_says_that_it_only_reports(tmp_path: Path) -> None:
    """Waitress cannot answer past its thread: the host says so when it starts."""
    make_hanging_site(tmp_path, acme={"DEADLINE_S": 0.3, "DEADLINE_ACTION": "answer"})
    command = ["waitress-serve", "--listen", "{bind}", "tenantry.wsgi:application"]
    with running(command, tmp_path, "/acme/") as server:
        status = server.get("/acme/sleep/1.0")[0].status
        log = server.log.read_text()

    assert (200, True) == (status, "deadline.answer_unavailable" in log), log
