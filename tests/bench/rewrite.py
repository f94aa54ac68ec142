"""Checks all tenants' responses while one tenant file is rewritten 200 times under load.

    python tests/bench/rewrite.py [SECONDS BETWEEN REWRITES]

One gunicorn serves the tenants acme, globex and initech with 2 workers of 8 threads. Each tenant
has two clients per worker. A round rewrites the file of acme 20 times, and two of the new versions
are broken. Rounds alternate with calm windows of the same length, so that other load on the machine
affects both equally. Every response contains the tenant's name, and its version twice: from the
first and from the last line of the tenant file.

No response may fail or mix two versions, and no worker may die. The other tenants' p99 may be at
most 1.25 times their calm p99. The median time from a rewrite to the first response with the new
version may be at most 0.3 s.
"""

import statistics
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

from loads import (
    Bounds,
    Client,
    describe,
    load,
    make_site,
    percentile,
    serving,
    usage,
    versioned_tenant_text,
    wait_until,
)

ROUNDS = 10
REWRITES = 20
BROKEN = (4, 13)
PERIOD_S = 0.5
PAUSE_S = 0.02
NAMES = ("acme", "globex", "initech")
Windows = list[tuple[float, float]]


class Rewriter:
    """Rewrites acme's file, and records when each version was written."""

    def __init__(self, path: Path, clients: list[Client], period_s: float) -> None:
        self._path, self._period_s = path, period_s
        self._clients = clients
        self._versions = count(1)
        self.written_at: dict[str, float] = {}
        self.last = "0"
        self.seen_by_all_s: list[float] = []

    def round(self) -> None:
        """Rewrite the file `REWRITES` times. Wait until every worker serves each valid version."""
        for number in range(REWRITES):
            next_at = time.perf_counter() + self._period_s
            version = next(self._versions)
            text = versioned_tenant_text("acme", version)
            if number in BROKEN:
                breaks = (text[: len(text) // 2], "raise ValueError('no')\n" + text)
                self._path.write_text(breaks[number % 2])
            else:
                self._path.write_text(text)
                self._await(str(version))
            time.sleep(max(0.0, next_at - time.perf_counter()))

    def _await(self, version: str) -> None:
        self.last = version
        self.written_at[version] = time.perf_counter()
        try:
            wait_until(
                lambda: all(one.answers[-1].words[1] == version for one in self._clients), 10
            )
        except SystemExit:
            print(version, [(one.answers[-1].words, one.failures[-1:]) for one in self._clients])
            for log in self._path.parents[1].glob("*.log"):
                print(log.read_text()[-3000:])
            raise
        self.seen_by_all_s.append(time.perf_counter() - self.written_at[version])

    def first_answers(self) -> list[float]:
        """Return the time from each valid change of the file to the first matching response."""
        first: dict[str, float] = {}
        for answer in (answer for client in self._clients for answer in client.answers):
            version = answer.words[1]
            first[version] = min(first.get(version, answer.at), answer.at)
        return [first[version] - at for version, at in self.written_at.items()]


def main(period_s: float) -> None:
    """Serve, send requests, rewrite the file, and print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        tenants = make_site(Path(folder))
        for name in NAMES:
            (tenants / f"{name}.py").write_text(versioned_tenant_text(name, 0))
        with serving(Path(folder)) as server:
            server.wait_for("/-/readyz", 200)
            wait_until(lambda: len(server.workers()) == 2)
            workers = server.workers()
            clients = [
                Client(server.port, name, PAUSE_S, worker)
                for name in NAMES
                for worker in workers * 2
            ]
            with load(clients):
                time.sleep(2)
                before = [usage(pid) for pid in workers]
                rewriter = Rewriter(tenants / "acme.py", clients[:4], period_s)
                calm, busy = take_rounds(rewriter)
                time.sleep(2)
                after = [usage(pid) for pid in workers]
            is_same = workers == server.workers()
    print(f"{len(rewriter.written_at)} valid rewrites, one per {period_s:g} s at the most")
    for pid, old, new in zip(workers, before, after, strict=True):
        print(f"  worker {pid}: before {old}; after {new}")
    report(clients, rewriter, calm, busy)
    bounds = Bounds()
    bounds.check("failed, dropped or mixed responses", count_failures(clients), 0)
    wrong = sum(one.answers[-1].words[1] != rewriter.last for one in clients[:4])
    bounds.check("connections with older content at the end", wrong, 0)
    bounds.check("workers that died", int(not is_same), 0)
    others = clients[4:]
    ratio = p99(others, busy) / p99(others, calm)
    bounds.check("the others' p99 while swapping ÷ calm", ratio, 1.25)
    first = statistics.median(rewriter.first_answers())
    bounds.check("median from rewrite to first response", first, 0.3, " s")
    bounds.end()


def take_rounds(rewriter: Rewriter) -> tuple[Windows, Windows]:
    """Return the calm windows, and the windows in which acme's file was rewritten."""
    calm: Windows = []
    busy: Windows = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        rewriter.round()
        busy.append((start, time.perf_counter()))
        # Wait, because work left by the last rewrite belongs to neither kind of window.
        time.sleep(0.5)
        start = time.perf_counter()
        time.sleep(busy[-1][1] - busy[-1][0])
        calm.append((start, time.perf_counter()))
    return calm, busy


def report(clients: list[Client], rewriter: Rewriter, calm: Windows, busy: Windows) -> None:
    """Print the figures that have no bound."""
    for what, some in (("acme", clients[:4]), ("others", clients[4:])):
        for name, windows in (("calm", calm), ("swapping", busy)):
            times = [x for one in some for x in one.seconds(windows)]
            print(f"  {what:<7}{name:<9}{describe(times)}")
    first = rewriter.first_answers()
    print(f"  rewrite to first response: median {statistics.median(first):.3f}, "
          f"p99 {percentile(first, 99):.3f}, max {max(first):.3f} s")  # fmt: skip
    seen = rewriter.seen_by_all_s
    print(f"  rewrite to every connection: median {statistics.median(seen):.3f}, "
          f"max {max(seen):.3f} s")  # fmt: skip
    ratios = [
        p99(clients[4:], [b]) / p99(clients[4:], [c]) for b, c in zip(busy, calm, strict=True)
    ]
    print("  p99 ratio per round:", " ".join(f"{ratio:.2f}" for ratio in ratios))


def p99(clients: list[Client], windows: Windows) -> float:
    """Return the p99 of all responses that some clients got in some windows."""
    return percentile([x for one in clients for x in one.seconds(windows)], 99)


def count_failures(clients: list[Client]) -> int:
    """Return how many responses failed, were dropped or mixed versions.

    Print the first failed requests.
    """
    failures = [
        f"{one.tenant} {each.text}" for one in clients for each in one.failures + one.reconnects
    ]
    for text in failures[:5]:
        print("  failure:", text)
    return len(failures)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else PERIOD_S)
