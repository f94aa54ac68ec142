"""With `DEADLINE_ACTION = "answer"`, a real server answers requests that exceed the deadline."""

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
    """At the deadline, the client gets 504, although the request continues and counts as stuck."""
    make_hanging_site(tmp_path, acme={"DEADLINE_S": 0.3, "DEADLINE_ACTION": "answer"})
    command = ["gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--workers", "1"]
    with running(command, tmp_path, "/acme/") as server:
        answers = [server.get(path) for path in (f"/acme/sleep/{DEADLINE_S}", "/acme/")]
        command = [program("tenantry"), "list", "--json"]
        listed = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
        # kill the server instead of waiting for the sleeping request
        os.killpg(server.process.pid, signal.SIGKILL)

    assert [504, 200] == [response.status for response, _ in answers]
    response, body = answers[0]
    assert "close" == response.headers["Connection"]
    assert json.loads(body)["request_id"] == response.headers["X-Request-ID"] != ""
    assert [1] == [worker["stuck"] for worker in json.loads(listed)[0]["workers"]]


def test_another_server_logs_that_it_cannot_answer(tmp_path: Path) -> None:
    """Under waitress, the host logs at start that it cannot answer requests at the deadline."""
    make_hanging_site(tmp_path, acme={"DEADLINE_S": 0.3, "DEADLINE_ACTION": "answer"})
    command = ["waitress-serve", "--listen", "{bind}", "tenantry.wsgi:application"]
    with running(command, tmp_path, "/acme/") as server:
        status = server.get("/acme/sleep/1.0")[0].status
        log = server.log.read_text()

    assert (200, True) == (status, "deadline.answer_unavailable" in log), log
