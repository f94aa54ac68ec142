"""What 10,000 tenants cost one worker against 10, and each request against 1 tenant.

    python tests/bench/many.py

Prints the time from exec to the first 201 of one tenant, and until `/-/readyz` says 200; resident
memory per tenant, asleep and awake; the cost per request, in windows on two servers by turns. It
takes some minutes: 10,000 files are judged four times.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from loads import Bounds, Connection, Server, landing_text, serving, usage

MANY = 10_000
FEW = 10
AWAKE = 1_000
START_ROUNDS = 3
WINDOWS = 20
WINDOW_S = 1.0
WANTED = "/t5000/"
READY_S = 300.0


def main() -> None:
    """Start, weigh, wake, ask."""
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as folder:
        sites = {count: make_site(Path(folder, str(count)), count) for count in (1, FEW, MANY)}
        time.sleep(1)
        ratio = first_answers(sites[FEW], sites[MANY])
        bounds.check(f"exec to first 201: {MANY} ÷ {FEW} tenants", ratio, 2)
        asleep_kib, awake_kib = memory(sites[FEW], sites[MANY])
        bounds.check("memory per tenant without a request", asleep_kib, 3, " KiB")
        bounds.check(f"memory per tenant awake, of {AWAKE}", awake_kib, 30, " KiB")
        ratio = cost(sites[1], sites[MANY])
        bounds.check(f"cost per request: {MANY} ÷ 1 tenants", ratio, 1.05)
    bounds.end()


def make_site(folder: Path, count: int) -> Path:
    """Make a folder of so many tenants, t5000 among them."""
    tenants = folder / "tenants"
    tenants.mkdir(parents=True)
    start = 0 if count > MANY // 2 else MANY // 2
    for number in range(start, start + count):
        (tenants / f"t{number}.py").write_text(landing_text(f"t{number}"))
    return folder


def first_answers(few: Path, many: Path) -> float:
    """Return how much longer the first answer takes with many tenants, by turns."""
    times: dict[Path, list[float]] = {few: [], many: []}
    for _ in range(START_ROUNDS):
        for site in (few, many):
            with serving(site, 1) as server:
                server.wait_for(WANTED, 201)
                times[site].append(time.perf_counter() - server.started_at)
    for what, site in ((FEW, few), (MANY, many)):
        shown = " ".join(f"{second:.2f}" for second in times[site])
        print(f"  exec to the first 201 with {what} tenants: {shown} s")
    return statistics.median(times[many]) / statistics.median(times[few])


def memory(few: Path, many: Path) -> tuple[float, float]:
    """Return KiB per tenant that has had no request, and per tenant that serves."""
    with ready(few) as (server, _):
        base = usage(worker_of(server)).rss_kib
    with ready(many) as (server, ready_s):
        worker = worker_of(server)
        asleep = usage(worker).rss_kib
        print(f"  {MANY} tenants: readyz 200 after {ready_s:.1f} s, {ready_cpu(worker)}")
        connection = Connection(server.port)
        for number in range(AWAKE):
            status = connection.get(f"/t{number}/")[0]
            if status != 201:
                raise SystemExit(f"/t{number}/ answered {status}")
        connection.close()
        time.sleep(3)
        awake = usage(worker).rss_kib
    print(f"  worker: {base} KiB with {FEW}, {asleep} KiB with {MANY}, {awake} KiB with "
          f"{AWAKE} awake")  # fmt: skip
    return (asleep - base) / (MANY - FEW), (awake - asleep) / AWAKE


def cost(one: Path, many: Path) -> float:
    """Return the mean seconds of a request beside many tenants ÷ beside none, by turns."""
    taken = {MANY: 0.0, 1: 0.0}
    asked = {MANY: 0, 1: 0}
    cpu = {MANY: 0.0, 1: 0.0}
    medians: dict[int, list[float]] = {MANY: [], 1: []}
    with ready(one) as (alone, _), ready(many) as (crowd, _):
        servers = {MANY: crowd, 1: alone}
        connections = {count: Connection(server.port) for count, server in servers.items()}
        for connection in connections.values():
            connection.get(WANTED)
        time.sleep(2)
        for _ in range(WINDOWS):
            for count, connection in connections.items():
                before = usage(worker_of(servers[count])).cpu_s
                times = window(connection)
                cpu[count] += usage(worker_of(servers[count])).cpu_s - before
                taken[count] += sum(times)
                asked[count] += len(times)
                medians[count].append(statistics.median(times))
        resting = {count: resting_cpu(server) for count, server in servers.items()}
        for connection in connections.values():
            connection.close()
    mean = {count: taken[count] / asked[count] for count in taken}
    for count, seconds in mean.items():
        median = statistics.median(medians[count])
        print(f"  {count:>5} tenants: {asked[count]} requests, mean {1e6 * seconds:.0f} µs, "
              f"median {1e6 * median:.0f} µs, {1e6 * cpu[count] / asked[count]:.0f} µs of CPU; "
              f"at rest {100 * resting[count]:.1f} % of a processor")  # fmt: skip
    return mean[MANY] / mean[1]


def window(connection: Connection) -> list[float]:
    """Return the seconds of each request, one after the other, for a while."""
    times = []
    end = time.perf_counter() + WINDOW_S
    while (start := time.perf_counter()) < end:
        status = connection.get(WANTED)[0]
        if status != 201:
            raise SystemExit(f"{WANTED} answered {status}")
        times.append(time.perf_counter() - start)
    return times


def resting_cpu(server: Server) -> float:
    """Return the share of a processor that a worker takes while nobody asks."""
    worker = worker_of(server)
    before = usage(worker).cpu_s
    time.sleep(5)
    return (usage(worker).cpu_s - before) / 5


def ready_cpu(pid: int) -> str:
    """Return what the worker itself has computed so far, as text."""
    return f"{usage(pid).cpu_s:.1f} s of the worker's CPU"


@contextlib.contextmanager
def ready(site: Path) -> Iterator[tuple[Server, float]]:
    """Serve by one worker; the block begins when all files are judged and the worker rests."""
    with serving(site, 1) as server:
        server.wait_for("/-/livez", 200)
        server.wait_for("/-/readyz", 200, READY_S, every_s=0.2)
        ready_s = time.perf_counter() - server.started_at
        time.sleep(3)
        yield server, ready_s


def worker_of(server: Server) -> int:
    """Return the pid of the one worker."""
    (worker,) = server.workers()
    return worker


if __name__ == "__main__":
    main()
