"""Checks that a tenant that blocks the interpreter is parked, and that others then serve.

    python tests/bench/parked.py [--seconds 60]

One gunicorn serves all tenants with 2 workers of 8 threads. Two clients repeatedly request a view
of `acme` that holds the interpreter lock in a catastrophic regular expression. At the same time,
four clients request a page of `globex`. The host must park `acme` (answer 503 for it) within 20 s,
and no request of `globex` may fail after that.
"""

import argparse
import contextlib
import http.client
import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from loads import Bounds, describe, serving

sys.path.append(str(Path(__file__).parents[1]))

from hanging import make_hanging_site

PATIENCE_S = 30.0
"""Timeout of a client in seconds, which is longer than a worker may hang."""


@dataclass
class RepeatingClient:
    """A client that opens a connection per request and records every outcome."""

    port: int
    path: str
    pause_s: float
    answers: list[tuple[float, int, float]] = field(default_factory=list)
    """Start time, status (0: no response) and duration of each request, in seconds."""

    def run(self, until: float) -> None:
        """Send requests, one after another, until the given time."""
        while time.monotonic() < until:
            began = time.monotonic()
            status = 0
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
                with contextlib.closing(connection):
                    connection.request("GET", self.path)
                    answer = connection.getresponse()
                    answer.read()
                    status = answer.status
            self.answers.append((began, status, time.monotonic() - began))
            time.sleep(self.pause_s)


def main() -> None:
    """Run the benchmark and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    bounds = Bounds()
    print(f"load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_hanging_site(folder, acme={}, globex={})
        with serving(folder, 2) as host:
            for one in ("acme", "globex"):
                host.wait_for(f"/{one}/", 200)
            measure(host.port, seconds, bounds)
            for line in host.log.read_text().splitlines():
                if "tenant." in line or "sent SIG" in line:
                    print(f"  {line[:150]}")
        print(json.loads((folder / "instance/acme/operator_state.json").read_text()))
    bounds.end()


def measure(port: int, seconds: float, bounds: Bounds) -> None:
    """Run all clients. Print when `acme` was parked, and how many requests of `globex` failed."""
    hostile = [RepeatingClient(port, "/acme/regex", 0.1) for _ in range(2)]
    quiet = [RepeatingClient(port, "/globex/", 0.05) for _ in range(4)]
    began = time.monotonic()
    threads = [
        threading.Thread(target=one.run, args=(began + seconds,)) for one in (*hostile, *quiet)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [at for one in hostile for at, status, _ in one.answers if status == 503]
    parked = max((at + took for one in hostile for at, status, took in one.answers if not status),
                 default=began) if refused else float("inf")  # fmt: skip
    answers = [answer for one in quiet for answer in one.answers]
    failed = [at - began for at, status, _ in answers if status != 200]
    after = [took for at, _, took in answers if at > parked]
    print(f"globex: {len(answers)} requests, {len(failed)} failed before acme was parked:",
          [round(at, 1) for at in failed][:20])  # fmt: skip
    print(f"globex afterwards: {describe(after) if len(after) > 1 else 'nothing'}")
    bounds.check("parked after", parked - began, 20.0, " s")
    late = [at for at in failed if at + began > parked]
    bounds.check("failed requests of globex afterwards", len(late), 0)


if __name__ == "__main__":
    main()
