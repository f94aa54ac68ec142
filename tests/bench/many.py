"""What 10,000 tenants cost one worker against 10, and each request against 1 tenant.

    python tests/bench/many.py [--tenants N] [--awake N] [--poll] [start] [memory] [cost]

Prints the time from exec to the first 201 of one tenant, and until `/-/readyz` says 200; resident
memory per tenant, asleep and awake; the cost per request, in windows on two servers by turns. The
whole takes some minutes: 10,000 files are judged twice, to the end, and three times in part. With
fewer tenants the figures per tenant say less: what is the same for all is shared by fewer. With
`--poll` one file is a link, so that no event is trusted: as on a network file system.
"""

import argparse
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
WINDOWS = 60
WINDOW_S = 0.5
WANTED = "t0"
READY_S = 900.0


def main() -> None:
    """Start, weigh, wake, ask."""
    asked = arguments()
    bounds, many = Bounds(), asked.tenants
    with tempfile.TemporaryDirectory() as folder:
        sites = {count: make_site(Path(folder, str(count)), count) for count in (1, FEW, many)}
        if asked.poll:
            linked = sites[many] / "tenants/t1.py"
            linked.symlink_to(linked.rename(linked.with_name("_t1.py")).name)
        time.sleep(3)
        if "start" in asked.parts:
            ratio = first_answers(sites[FEW], sites[many])
            bounds.check(f"exec to first 201: {many} ÷ {FEW} tenants", ratio, 2)
        if "memory" in asked.parts:
            base_kib = memory_of_few(sites[FEW])
            asleep_kib, awake_kib = memory(sites[many], many, asked.awake)
            per_tenant_kib = (asleep_kib - base_kib) / (many - FEW)
            bounds.check("memory per tenant without a request", per_tenant_kib, 3, " KiB")
            per_tenant_kib = (awake_kib - asleep_kib) / asked.awake
            bounds.check(f"memory per tenant awake, of {asked.awake}", per_tenant_kib, 30, " KiB")
        if "cost" in asked.parts:
            ratio = cost(sites[1], sites[many], many)
            bounds.check(f"cost per request: {many} ÷ 1 tenants", ratio, 1.05)
    bounds.end()


def arguments() -> argparse.Namespace:
    """Return what was asked for on the command line."""
    parts = ["start", "memory", "cost"]
    parser = argparse.ArgumentParser(description="What many tenants cost one worker.")
    parser.add_argument("--tenants", type=int, default=MANY, help="how many are many")
    parser.add_argument("--awake", type=int, default=AWAKE, help="how many of them are woken")
    parser.add_argument("--poll", action="store_true", help="trust no events")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; or all")
    asked = parser.parse_args()
    asked.parts = asked.parts or parts
    if not set(asked.parts) <= set(parts) or not FEW < asked.awake <= asked.tenants:
        parser.error(f"expected parts of {parts}, and {FEW} < awake <= tenants")
    return asked


def make_site(folder: Path, count: int) -> Path:
    """Make a folder of so many tenants, t0 among them."""
    tenants = folder / "tenants"
    tenants.mkdir(parents=True)
    for number in range(count):
        (tenants / f"t{number}.py").write_text(landing_text(f"t{number}"))
    return folder


def first_answers(few: Path, many: Path) -> float:
    """Return how much longer the first answer takes with many tenants, by turns."""
    times: dict[Path, list[float]] = {few: [], many: []}
    for _ in range(START_ROUNDS):
        for site in (few, many):
            with serving(site, 1) as server:
                server.wait_for(f"/{WANTED}/", 201)
                times[site].append(time.perf_counter() - server.started_at)
    for site, seconds in times.items():
        shown = " ".join(f"{second:.2f}" for second in seconds)
        print(f"  exec to the first 201 with {site.name} tenants: {shown} s")
    return statistics.median(times[many]) / statistics.median(times[few])


def memory_of_few(few: Path) -> int:
    """Return KiB of a worker with few tenants."""
    with ready(few) as (server, _):
        base = usage(worker_of(server)).rss_kib
    print(f"  worker: {base} KiB with {FEW}")
    return base


def memory(many: Path, count: int, awake: int) -> tuple[int, int]:
    """Return KiB of a worker whose tenants have had no request, and when some of them serve."""
    with ready(many) as (server, ready_s):
        worker = worker_of(server)
        asleep_kib = usage(worker).rss_kib
        print(f"  {count} tenants: readyz 200 after {ready_s:.1f} s, {ready_cpu(worker)}")
        connection = Connection(server.port)
        for number in range(awake):
            status = connection.get(f"/t{number}/")[0]
            if status != 201:
                raise SystemExit(f"/t{number}/ answered {status}")
        connection.close()
        time.sleep(3)
        awake_kib = usage(worker).rss_kib
    print(f"  worker: {asleep_kib} KiB with {count}, {awake_kib} KiB with {awake} awake")
    return asleep_kib, awake_kib


def cost(one: Path, many: Path, count: int) -> float:
    """Return what a request costs beside many tenants ÷ beside none, by turns.

    That is all the processor time of the worker meanwhile, what it does beside requests included:
    seconds on the clock tell as much only on a machine with nothing else to do.
    """
    taken = {count: 0.0, 1: 0.0}
    asked = {count: 0, 1: 0}
    cpu = {count: 0.0, 1: 0.0}
    medians: dict[int, list[float]] = {count: [], 1: []}
    with ready(one) as (alone, _), ready(many) as (crowd, _):
        servers = {count: crowd, 1: alone}
        connections = {each: Connection(server.port) for each, server in servers.items()}
        for connection in connections.values():
            connection.get(f"/{WANTED}/")
        time.sleep(2)
        for _ in range(WINDOWS):
            for each, connection in connections.items():
                before = cpu_s(worker_of(servers[each]))
                times = window(connection)
                cpu[each] += cpu_s(worker_of(servers[each])) - before
                taken[each] += sum(times)
                asked[each] += len(times)
                medians[each].append(statistics.median(times))
        resting = {each: resting_cpu(server) for each, server in servers.items()}
        for connection in connections.values():
            connection.close()
    for each, seconds in taken.items():
        clock = f"{1e6 * seconds / asked[each]:.0f} µs on the clock"
        median = f"median {1e6 * statistics.median(medians[each]):.0f} µs"
        print(f"  {each:>5} tenants: {asked[each]} requests, {clock}, {median}, "
              f"{1e6 * cpu[each] / asked[each]:.0f} µs of CPU; "
              f"at rest {100 * resting[each]:.1f} % of a processor")  # fmt: skip
    return cpu[count] / asked[count] / (cpu[1] / asked[1])


def cpu_s(pid: int) -> float:
    """Return the processor seconds that a process's threads have had, to the microsecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def window(connection: Connection) -> list[float]:
    """Return the seconds of each request, one after the other, for a while."""
    times = []
    end = time.perf_counter() + WINDOW_S
    while (start := time.perf_counter()) < end:
        status = connection.get(f"/{WANTED}/")[0]
        if status != 201:
            raise SystemExit(f"/{WANTED}/ answered {status}")
        times.append(time.perf_counter() - start)
    return times


def resting_cpu(server: Server) -> float:
    """Return the share of a processor that a worker takes while nobody asks."""
    worker = worker_of(server)
    before = cpu_s(worker)
    time.sleep(5)
    return (cpu_s(worker) - before) / 5


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
