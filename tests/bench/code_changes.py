"""Checks that no answer mixes code while code changes on disk and workers are killed at random.

    python tests/bench/code_changes.py [--rounds N] [--seconds S]

One gunicorn serves 40 tenants with 3 workers. The tenants' code has five modules, which hold the
same version number. A module-level import, an import within a view, a subpackage and a list of all
modules of a package each read one of the numbers, and a request returns them all.

In each round, one thread changes the modules on disk one after another, and moves the package away
and back, another thread kills workers with `kill -9`, and a third thread changes tenant files, so
that apps are built again. Many tenants get their first request late. Then the new code is complete,
and the benchmark runs `tenantry restart`.

No answer may contain two numbers, no answer before `restart` may contain a new number, and no
request after `restart` may get an old number. Requests to a killed worker fail; no other request
may.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from loads import Bounds, Connection, Server, serving

TENANTS = 40
CLIENTS = 4
WORKERS = 3
MODULES = ("first", "second", "late", "parts/third", "plugins/fourth")
BLUEPRINT = """\
import importlib, pkgutil
from flask import Blueprint
from . import first, plugins
from .parts.third import NUMBER as THIRD
from .second import NUMBER as SECOND

shop_bp = Blueprint("shop", __name__)
FOUND = [
    importlib.import_module(f"shop.plugins.{one.name}").NUMBER
    for one in pkgutil.iter_modules(plugins.__path__)
]

@shop_bp.get("/")
def show():
    from shop.late import NUMBER
    return " ".join(map(str, (first.NUMBER, SECOND, THIRD, NUMBER, *FOUND)))
"""


class Answer(NamedTuple):
    """A response to a request."""

    begun_at: float
    ended_at: float
    status: int
    text: str


class Restart(NamedTuple):
    """A restart, after which all code has the number `number`."""

    begun_at: float
    ended_at: float
    number: int


def main() -> None:
    """Run the rounds, and check all answers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="seconds of each round")
    chosen = parser.parse_args()
    answers: list[Answer] = []
    kills: list[float] = []
    restarts = [Restart(0.0, 0.0, 0)]
    with tempfile.TemporaryDirectory() as name:
        site = Path(name)
        write_site(site)
        with serving(site, WORKERS) as server:
            server.wait_for("/-/readyz", 200)
            with in_threads(*[lambda stop: ask(server, answers, stop)] * CLIENTS):
                for number in range(1, chosen.rounds + 1):
                    disturb(site, server, number, chosen.seconds, kills)
                    write_code(site, number)
                    restarts.append(restart(site, number))
                    time.sleep(1)
    report(answers, kills, restarts)


def write_site(site: Path) -> None:
    """Write the tenants, and their code with the number 0."""
    (site / "tenants").mkdir()
    for number in range(TENANTS):
        write_tenant(site, number)
    for package in ("shop", "shop/plugins"):
        (site / package).mkdir()
        (site / package / "__init__.py").touch()
    (site / "shop/parts").mkdir()
    (site / "shop/blueprint.py").write_text(BLUEPRINT)
    write_code(site, 0)


def write_tenant(site: Path, number: int) -> None:
    """Write a tenant file whose content is new."""
    new = site / "tenants/.new"
    text = f"SECRET_KEY = {f't{number}' * 16!r}\nBLUEPRINTS = ['shop']\nAT = {time.time()}\n"
    new.write_text(text)
    new.replace(site / f"tenants/t{number}.py")


def write_code(site: Path, number: int) -> None:
    """Let each module have a number."""
    for module in MODULES:
        (site / f"shop/{module}.py").write_text(f"NUMBER = {number}\n")


def disturb(site: Path, server: Server, number: int, seconds: float, kills: list[float]) -> None:
    """Change code and tenant files, and kill workers."""
    works = (
        lambda stop: change_code(site, number, stop),
        lambda stop: change_tenants(site, stop),
        lambda stop: kill_workers(server, kills, stop),
    )
    with in_threads(*works):
        time.sleep(seconds)
    server.wait_for("/-/readyz", 200)


def change_code(site: Path, number: int, stop: threading.Event) -> None:
    """Write new modules one after another, and move the package away and back."""
    while not stop.wait(0.05):
        module = random.choice(MODULES)
        (site / f"shop/{module}.py").write_text(f"NUMBER = {number}\n")
        (site / "shop/plugins/new.py").write_text(f"NUMBER = {number}\n")
        if random.random() < 0.2:
            (site / "shop").rename(site / "moved")
            stop.wait(0.2)
            (site / "moved").rename(site / "shop")
    (site / "shop/plugins/new.py").unlink(missing_ok=True)


def change_tenants(site: Path, stop: threading.Event) -> None:
    """Change tenant files, so that their apps are built again."""
    while not stop.wait(0.3):
        write_tenant(site, random.randrange(TENANTS))


def kill_workers(server: Server, kills: list[float], stop: threading.Event) -> None:
    """Kill workers at random, but never all at once."""
    while not stop.wait(random.uniform(0.5, 2.0)):
        workers = server.workers()
        if len(workers) == WORKERS:
            with suppress(ProcessLookupError):
                kills.append(time.perf_counter())
                os.kill(random.choice(workers), signal.SIGKILL)


def restart(site: Path, number: int) -> Restart:
    """Run `tenantry restart`."""
    begun_at = time.perf_counter()
    command = [str(Path(sys.executable).with_name("tenantry")), "restart"]
    subprocess.run(command, cwd=site, check=True, stdout=subprocess.DEVNULL)
    return Restart(begun_at, time.perf_counter(), number)


def ask(server: Server, answers: list[Answer], stop: threading.Event) -> None:
    """Send requests to tenants at random, each on a new connection."""
    while not stop.wait(0.01):
        begun_at, status, text = time.perf_counter(), 0, b""
        with suppress(OSError, EOFError):
            connection = Connection(server.port)
            try:
                status, text = connection.get(f"/t{random.randrange(TENANTS)}/")
            finally:
                connection.close()
        answers.append(Answer(begun_at, time.perf_counter(), status, text.decode()))


@contextmanager
def in_threads(*works: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run each function in a thread until the end of the `with` block."""
    stop = threading.Event()
    threads = [threading.Thread(target=work, args=(stop,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def report(answers: list[Answer], kills: list[float], restarts: list[Restart]) -> None:
    """Print what the answers contain, beside the bounds."""
    good = [one for one in answers if one.status == 200]
    mixed = [one for one in good if len(set(one.text.split())) != 1 or len(one.text.split()) != 5]
    wrong = [one for one in good if one not in mixed and not is_expected(one, restarts)]
    lost = [one for one in answers if one.status == 0 and not any(
        one.begun_at - 0.5 <= at <= one.ended_at for at in kills)]  # fmt: skip
    refused = [one for one in answers if one.status not in (0, 200)]
    print(f"  {len(good)} answers, {len(kills)} killed workers, {len(restarts) - 1} restarts")
    for one in (*mixed[:3], *wrong[:3], *lost[:3], *refused[:3]):
        print(f"  {one}")
    bounds = Bounds()
    bounds.check("answers from mixed code", len(mixed), 0)
    bounds.check("answers from new code before, or old code after `restart`", len(wrong), 0)
    bounds.check("requests that got 500 or 503", len(refused), 0)
    bounds.check("requests that failed, but not in a killed worker", len(lost), 0)
    bounds.end()


def is_expected(answer: Answer, restarts: list[Restart]) -> bool:
    """Whether the number in an answer is that of the last or the running restart."""
    number = int(answer.text.split()[0])
    last = [one for one in restarts if one.ended_at <= answer.begun_at][-1]
    running = [one for one in restarts if last.ended_at < one.ended_at and
               one.begun_at <= answer.ended_at]  # fmt: skip
    return number in {last.number, *(one.number for one in running)}


if __name__ == "__main__":
    main()
