"""DEADLINE_ACTION = "interrupt": an overdue request is ended, and never another one."""

import contextlib
import json
import logging
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from werkzeug.test import create_environ, run_wsgi_app

from hanging import make_hanging_site
from servers import CONFIG_FILE, DEADLINE_S, program, running, wait_until
from tenantry.database.budget import ConnectionBudget
from tenantry.database.checkouts import Checkouts
from tenantry.database.session import Database
from tenantry.http.environ import SENT_STATUS
from tenantry.middleware import interrupts
from tenantry.middleware.containment import Containment
from tenantry.middleware.deadlines import Deadlines, RunningRequests
from tenantry.middleware.interrupts import DeadlineExceededError, _is_safe

pytestmark = pytest.mark.live

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOGGER = logging.getLogger("tenant.interrupted")
LOGGER.disabled = True  # a record would keep the frames of a query, and so its connection


def interruptible(
    act: Callable[[], object], requests: RunningRequests, deadline_s: float = 0.01, uses: Any = None
) -> "WSGIApplication":
    """Return an app that does `act` and answers, inside the layers of a host."""

    def app(_: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        act()
        start_response("200 OK", [])
        return [b"done"]

    find_uses = uses or (lambda _: [])
    inner = Containment(app, LOGGER)
    return Deadlines(inner, requests, "acme", deadline_s, find_uses=find_uses)


def asked(app: "WSGIApplication", requests: RunningRequests, **environ: Any) -> str:
    """Send a request on a thread of its own, look at what runs until it ends; return its status."""
    told: list[str] = []

    def ask() -> None:
        _, status, _ = run_wsgi_app(app, create_environ() | environ, buffered=True)
        told.append(status)

    thread = threading.Thread(target=ask)
    thread.start()

    def has_ended() -> bool:
        requests.check()
        return not thread.is_alive()

    wait_until(has_ended)
    thread.join()
    return told[0]


def compute() -> None:
    """Work until somebody interrupts it."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        pass


def test_computing_is_ended() -> None:
    """The client gets 504, and nothing is left."""
    requests = RunningRequests()

    status = asked(interruptible(compute, requests), requests)

    assert ("504", 0) == (status[:3], requests.stuck().total())


def test_an_endpoint_that_catches_every_exception_is_ended() -> None:
    """It is no `Exception`; one that cleaning up raises meanwhile changes nothing."""

    def act() -> None:
        try:
            compute()
        except Exception:  # noqa: BLE001
            pytest.fail("swallowed")
        finally:
            raise ValueError

    requests = RunningRequests()

    assert "504" == asked(interruptible(act, requests), requests)[:3]


def test_a_slow_stream_is_only_reported() -> None:
    """The head is out: a 504 would come too late, and a long download is no fault."""

    def app(_: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        start_response("200 OK", [])
        yield b"one"
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            pass
        yield b"two"

    requests = RunningRequests()
    layer = Deadlines(Containment(app, LOGGER), requests, "acme", 0.01, find_uses=lambda _: [])

    assert "200" == asked(layer, requests)[:3]


def test_what_waits_in_c_is_answered_past_it() -> None:
    """The client gets its 504 on the connection; what the app says later goes nowhere."""
    ours, clients = socket.socketpair()
    release = threading.Lock()
    release.acquire()
    requests = RunningRequests()
    layer = interruptible(lambda: release.acquire(timeout=DEADLINE_S), requests)
    errors: list[BaseException] = []

    def ask() -> None:
        environ = create_environ(method="GET") | {"gunicorn.socket": ours}
        try:
            run_wsgi_app(layer, environ, buffered=True)
        except ConnectionResetError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    clients.setblocking(False)
    received = b""

    def has_answer() -> bool:
        nonlocal received
        requests.check()
        try:
            part = clients.recv(65536)
        except BlockingIOError:
            return False
        received += part
        return not part

    wait_until(has_answer)
    stuck = requests.stuck().total()
    [status] = [running.environ[SENT_STATUS] for running in requests._running]
    release.release()
    thread.join()
    ours.close()
    clients.close()

    head, _, body = received.partition(b"\r\n\r\n")
    assert b"HTTP/1.1 504 Gateway Timeout" == head.splitlines()[0]
    assert f"Content-Length: {len(body)}".encode() in head
    assert (1, 1, 0) == (stuck, len(errors), requests.stuck().total())
    assert "504" == status  # for the log and the ledger


# -- in a database --------------------------------------------------------------------------------


def _query(url: str, sql: str) -> tuple[str, int, int]:
    """Ask a database something that never ends; return the status, and what it holds afterwards."""
    budget = ConnectionBudget(2)
    database = Database("acme", SecretStr(url), budget)
    requests = RunningRequests()

    def act() -> None:
        with database.engine.connect() as connection:
            connection.execute(text(sql)).all()

    status = asked(interruptible(act, requests, uses=database.uses_of), requests)
    with database.engine.connect() as connection:  # which still works
        one = connection.execute(text("SELECT 1")).scalar_one()
    database.close()
    return status[:3], one, budget.open


def test_a_query_of_postgresql_is_cancelled(postgres_url: str) -> None:
    """Its connection is not used again, and its permit is free."""
    assert ("504", 1, 0) == _query(postgres_url, "SELECT pg_sleep(600)")


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


def test_a_query_of_sqlite_is_cancelled(tmp_path: Path) -> None:
    """The same."""
    assert ("504", 1, 0) == _query(f"sqlite:///{tmp_path}/acme.sqlite3", ENDLESS)


def test_what_was_given_back_is_never_cancelled() -> None:
    """It may be another request's: a use ends with its check-in."""
    cancelled: list[str] = []

    class Connection:
        def interrupt(self) -> None:
            """Note it."""
            cancelled.append("interrupted")

    class Entry:
        dbapi_connection = Connection()

    uses, entry = Checkouts(), Entry()
    uses.take(entry)
    [first] = uses.of(threading.get_ident())
    uses.give_back(entry)
    first()
    uses.take(entry)
    [second] = uses.of(threading.get_ident())
    first()
    counts = [len(cancelled)]
    second()

    assert [0, 1] == [*counts, len(cancelled)]


ROUNDS = 100


def spin(seconds: float) -> None:
    """Work for so long."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


# -- never another one ----------------------------------------------------------------------------


def test_an_interrupt_never_reaches_another_request() -> None:
    """Threads serve requests that end about at their deadline, and others, in turns.

    Only the former are interrupted, each is answered once, and nothing comes between requests.
    """
    requests = RunningRequests()
    is_over = threading.Event()
    counts: dict[str, int] = {"200": 0, "504": 0}
    wrong: list[object] = []
    lock = threading.Lock()

    def serve(seed: int) -> None:
        dice = random.Random(seed)
        hasty = interruptible(lambda: spin(dice.random() * 0.002), requests, 0.001)
        calm = interruptible(lambda: spin(dice.random() * 0.0005), requests, DEADLINE_S)
        try:
            for _ in range(ROUNDS):
                _, status, _ = run_wsgi_app(hasty, create_environ(), buffered=True)
                with lock:
                    counts[status[:3]] += 1
                _, status, _ = run_wsgi_app(calm, create_environ(), buffered=True)
                if status[:3] != "200":
                    wrong.append(status)
        except BaseException as error:  # noqa: BLE001 - it is what must not come
            wrong.append(repr(error))

    def watch() -> None:
        while not is_over.is_set():
            requests.check()

    logging.disable()
    watcher = threading.Thread(target=watch)
    threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(4)]
    watcher.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    is_over.set()
    watcher.join()
    logging.disable(logging.NOTSET)

    assert ([], 4 * ROUNDS) == (wrong, sum(counts.values()))
    assert counts["504"] > 0
    assert counts["200"] > 0


def test_code_that_an_exception_would_harm_is_left_alone() -> None:
    """A lock of `logging`, or a permit, would never be given back."""
    told = []

    class Handler(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            """Look from inside."""
            told.append(_is_safe(threading.get_ident()))

    logger = logging.getLogger("tenant.own")
    handler = Handler()
    logger.addHandler(handler)
    logger.error("said")
    logger.removeHandler(handler)

    assert [False, True] == [*told, _is_safe(threading.get_ident())]
    assert not issubclass(DeadlineExceededError, Exception)


def _wait_for_an_event() -> None:
    event, deadline = threading.Event(), time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        event.wait(0.01)


def _wait_for_a_queue() -> None:
    nothing: queue.Queue[int] = queue.Queue()
    while True:
        with contextlib.suppress(queue.Empty):
            nothing.get(timeout=0.01)


@pytest.mark.parametrize("act", [_wait_for_an_event, _wait_for_a_queue])
def test_waiting_in_steps_is_ended(act: Callable[[], None]) -> None:
    """A `Condition` bears an exception while it waits, though not while it is entered."""
    requests = RunningRequests()

    assert "504" == asked(interruptible(act, requests), requests)[:3]


def test_who_enters_a_queue_is_left_alone() -> None:
    """Its lock would be left held: it is ended later, and nobody else is kept waiting."""
    requests = RunningRequests()
    full: queue.Queue[int] = queue.Queue()

    def act() -> None:
        full.put(1)
        compute()

    with full.mutex:
        thread = threading.Thread(target=asked, args=(interruptible(act, requests), requests))
        thread.start()

        wait_until(lambda: requests.stuck().total() == 1)
        for _ in range(10):
            requests.check()
    thread.join()

    assert (False, 1) == (full.mutex.locked(), len(full.queue))


def test_nobody_runs_between_the_look_and_the_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch interval is raised, and what it was afterwards."""
    seen: list[float] = []
    monkeypatch.setattr(
        interrupts, "_is_safe", lambda _: bool(seen.append(sys.getswitchinterval())) or True
    )
    requests, before = RunningRequests(), sys.getswitchinterval()

    status = asked(interruptible(compute, requests), requests)

    assert ("504", before) == (status[:3], sys.getswitchinterval())
    assert [interrupts._HOLD_S] == pytest.approx(seen)


@pytest.mark.live
def test_clients_get_their_504_in_time(tmp_path: Path) -> None:
    """Under gunicorn: computing, and sleeping, where the thread goes on; the next are served."""
    make_hanging_site(tmp_path, acme={"DEADLINE_S": 0.3, "DEADLINE_ACTION": "interrupt"})
    command = ["gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--workers", "1"]
    with running(command, tmp_path, "/acme/") as server:
        paths = [f"/acme/compute/{DEADLINE_S}", f"/acme/sleep/{DEADLINE_S}", "/acme/"]
        answers = [server.get(path) for path in paths]
        listed = [program("tenantry"), "list", "--json"]
        said = subprocess.run(listed, cwd=tmp_path, capture_output=True, check=True).stdout
        os.killpg(server.process.pid, signal.SIGKILL)  # nobody waits for who sleeps

    assert [504, 504, 200] == [answer.status for answer, _ in answers]
    computed, slept = [(answer, json.loads(body)) for answer, body in answers[:2]]
    assert computed[1].keys() == slept[1].keys()
    assert ["keep-alive", "close"] == [one[0].headers["Connection"] for one in (computed, slept)]
    assert slept[1]["request_id"] == slept[0].headers["X-Request-ID"] != ""
    assert [1] == [told["stuck"] for told in json.loads(said)[0]["workers"]]
