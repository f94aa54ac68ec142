"""What a tenant whose database stops under load does to the others, and when it serves again.

    python tests/bench/database_down.py [--seconds 5] [--rounds 6]

One gunicorn, one worker of 8 threads; `down` on a PostgreSQL server of its own, `calm` and three
more on another. A calm run, then a run in which the server of `down` is frozen (SIGSTOP to all
its processes, as `docker pause` does: it accepts and says nothing, and so do the connections that
are open); then it goes on; and so in turns. A 503 costs less than any other answer: where the
slowest of a calm run takes 0.1 s, the machine is too busy to tell.
"""

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path

import rows
from loads import Bounds, Server, children, describe, percentile, serving, wait_until
from visitors import Visitor

from servers import in_threads

CALM = [f"calm{number}" for number in range(4)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=6)
    asked = parser.parse_args()
    bounds = Bounds()
    with rows.running() as good, rows.running() as bad, tempfile.TemporaryDirectory() as folder:
        tenants = rows.make_site(Path(folder))
        for server, names in ((good, CALM), (bad, ["down"])):
            rows.make_template(server)
            with server.connect() as connection:
                for name in names:
                    rows.make_database(connection, name)
                    text = rows.tenant_text(name, server.url(name))
                    (tenants / f"{name}.py").write_text(text)
        with serving(Path(folder), 1) as host:
            for name in (*CALM, "down"):
                host.wait_for(f"/{name}/", 200)
            measure(host, bad, bounds, asked)
    bounds.end()


def measure(host: Server, bad: rows.Postgres, bounds: Bounds, asked: argparse.Namespace) -> None:
    """Take a calm run and one beside the tenant that is down, in turns; print p99s and answers."""
    calm: list[float] = []
    beside: list[float] = []
    late: list[float] = []
    backs: list[float] = []
    for _ in range(asked.rounds):
        calm += run(host, asked.seconds)[0]
        os.kill(bad.pid, signal.SIGSTOP)  # first: then it starts no more
        frozen = [bad.pid, *children(bad.pid)]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        times, down = run(host, asked.seconds)
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        start = time.perf_counter()
        wait_until(lambda: host.status("/down/") == 200, 30, 0.02)
        backs.append(time.perf_counter() - start)
        beside += times
        late += after_first_time_out(down)
    print(f"calm    {describe(calm)}\nbeside  {describe(beside)}")
    bounds.check("others' p99, beside ÷ calm", percentile(beside, 99) / percentile(calm, 99), 1.25)
    print(f"503     {describe(late)}, after the first time-out")
    bounds.check("slowest 503 after the first time-out", max(late), 0.1, " s")
    bounds.check("back after", max(backs), 5, " s")


def after_first_time_out(visitors: list[Visitor]) -> list[float]:
    """Return the seconds of each 503 to a request that began after the first of them timed out."""
    refused = [one for visitor in visitors for one in visitor.answers if one.status == 503]
    known_at = min(one.at for one in refused)
    return [one.seconds for one in refused if one.at - one.seconds > known_at]


def run(host: Server, seconds: float) -> tuple[list[float], list[Visitor]]:
    """Ask all tenants for so long; return the others' seconds, and the clients of `down`."""
    others = [Visitor(host.port, name) for name in CALM]
    down = [Visitor(host.port, "down") for _ in range(2)]
    with in_threads(*(one.ask_until for one in [*others, *down])):
        time.sleep(seconds)
    failed = [one for visitor in others for one in visitor.answers if one.status != 200]
    if failed:
        raise SystemExit(f"others failed: {failed[:3]}")
    return [one.seconds for visitor in others for one in visitor.answers], down


if __name__ == "__main__":
    main()
