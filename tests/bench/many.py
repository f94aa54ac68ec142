"""Measures what 10,000 tenants in one worker cost: start, memory and requests.

    python tests/bench/many.py [--tenants N] [--awake N] [--poll] [start] [memory] [cost]

The benchmark has three parts:

- `start` measures the time from exec to the first 201 of one tenant. With 10,000 tenants, the time
  may be at most 2 times that with 10 tenants.
- `memory` measures resident memory per tenant: at most 3 KiB for a tenant without requests, and at
  most 40 KiB for a tenant that has answered a request.
- `cost` measures processor time per request, on two servers in turn. With 10,000 tenants, half of
  them with host names of their own, a request may cost at most 1.05 times as much as with 1 tenant.

The benchmark also prints the time until `/-/readyz` returns 200. A run takes some minutes, because
the benchmark validates 10,000 files twice completely and three times partly. With fewer tenants,
the figures per tenant are less exact, because fewer tenants share the fixed cost. With `--poll`,
one tenant file is a symbolic link, so the host polls for changes as it does on a network file
system.
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
    """Run the chosen parts of the benchmark."""
    chosen = arguments()
    bounds, many = Bounds(), chosen.tenants
    with tempfile.TemporaryDirectory() as folder:
        sites = {count: make_site(Path(folder, str(count)), count) for count in (1, FEW, many)}
        if chosen.poll:
            linked = sites[many] / "tenants/t1.py"
            linked.symlink_to(linked.rename(linked.with_name("_t1.py")).name)
        time.sleep(3)
        if "start" in chosen.parts:
            ratio = first_answers(sites[FEW], sites[many])
            bounds.check(f"exec to first 201: {many} ÷ {FEW} tenants", ratio, 2)
        if "memory" in chosen.parts:
            base_kib = memory_of_few(sites[FEW])
            asleep_kib, awake_kib = memory(sites[many], many, chosen.awake)
            per_tenant_kib = (asleep_kib - base_kib) / (many - FEW)
            bounds.check("memory per tenant without a request", per_tenant_kib, 3, " KiB")
            per_tenant_kib = (awake_kib - asleep_kib) / chosen.awake
            bounds.check(f"memory per tenant awake, of {chosen.awake}", per_tenant_kib, 40, " KiB")
        if "cost" in chosen.parts:
            named = make_site(Path(folder, "named"), many, has_names=True)
            ratio = cost(sites[1], named, many)
            bounds.check(f"cost per request: {many} ÷ 1 tenants", ratio, 1.05)
    bounds.end()


def arguments() -> argparse.Namespace:
    """Return the command-line arguments."""
    parts = ["start", "memory", "cost"]
    parser = argparse.ArgumentParser(description="What many tenants cost one worker.")
    parser.add_argument("--tenants", type=int, default=MANY, help="number of tenants")
    parser.add_argument(
        "--awake", type=int, default=AWAKE, help="number of tenants that get a request"
    )
    parser.add_argument("--poll", action="store_true", help="poll, as without file events")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; or all")
    chosen = parser.parse_args()
    chosen.parts = chosen.parts or parts
    if not set(chosen.parts) <= set(parts) or not FEW < chosen.awake <= chosen.tenants:
        parser.error(f"expected parts of {parts}, and {FEW} < awake <= tenants")
    return chosen


def make_site(folder: Path, count: int, *, has_names: bool = False) -> Path:
    """Create a folder with `count` tenants, including the tenant t0.

    With `has_names`, every second tenant has host names of its own.
    """
    tenants = folder / "tenants"
    tenants.mkdir(parents=True)
    for number in range(count):
        text = landing_text(f"t{number}")
        if has_names and number % 2:
            text += f"HOSTS = ['t{number}.test', 'www.t{number}.test']\n"
        (tenants / f"t{number}.py").write_text(text)
    return folder


def first_answers(few: Path, many: Path) -> float:
    """Return the time to the first response with many tenants, divided by the time with few."""
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
    """Return the memory of a worker with few tenants, in KiB."""
    with ready(few) as (server, _):
        base = usage(worker_of(server)).rss_kib
    print(f"  worker: {base} KiB with {FEW}")
    return base


def memory(many: Path, count: int, awake: int) -> tuple[int, int]:
    """Return a worker's memory in KiB, first without requests and then with awake tenants.

    An awake tenant has answered one request.
    """
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
    """Return the processor time per request with many tenants, divided by that with one tenant.

    The processor time includes the worker's background work. Wall time would be comparable only on
    an idle machine.
    """
    taken = {count: 0.0, 1: 0.0}
    request_counts = {count: 0, 1: 0}
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
                request_counts[each] += len(times)
                medians[each].append(statistics.median(times))
        idle = {each: idle_cpu(server) for each, server in servers.items()}
        for connection in connections.values():
            connection.close()
    for each, seconds in taken.items():
        clock = f"{1e6 * seconds / request_counts[each]:.0f} µs on the clock"
        median = f"median {1e6 * statistics.median(medians[each]):.0f} µs"
        print(f"  {each:>5} tenants: {request_counts[each]} requests, {clock}, {median}, "
              f"{1e6 * cpu[each] / request_counts[each]:.0f} µs of CPU; "
              f"idle {100 * idle[each]:.1f} % of a processor")  # fmt: skip
    return cpu[count] / request_counts[count] / (cpu[1] / request_counts[1])


def cpu_s(pid: int) -> float:
    """Return the processor seconds that a process's threads have used, to the microsecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def window(connection: Connection) -> list[float]:
    """Send requests one after another for `WINDOW_S`. Return the duration of each request."""
    times = []
    end = time.perf_counter() + WINDOW_S
    while (start := time.perf_counter()) < end:
        status = connection.get(f"/{WANTED}/")[0]
        if status != 201:
            raise SystemExit(f"/{WANTED}/ answered {status}")
        times.append(time.perf_counter() - start)
    return times


def idle_cpu(server: Server) -> float:
    """Return the share of a processor that an idle worker uses."""
    worker = worker_of(server)
    before = cpu_s(worker)
    time.sleep(5)
    return (cpu_s(worker) - before) / 5


def ready_cpu(pid: int) -> str:
    """Return the processor time that the worker has used so far, as text."""
    return f"{usage(pid).cpu_s:.1f} s of the worker's CPU"


@contextlib.contextmanager
def ready(site: Path) -> Iterator[tuple[Server, float]]:
    """Serve with one worker. Yield when the worker has validated all files and is idle."""
    with serving(site, 1) as server:
        server.wait_for("/-/livez", 200)
        server.wait_for("/-/readyz", 200, READY_S, every_s=0.2)
        ready_s = time.perf_counter() - server.started_at
        time.sleep(3)
        yield server, ready_s


def worker_of(server: Server) -> int:
    """Return the process ID of the only worker."""
    (worker,) = server.workers()
    return worker


if __name__ == "__main__":
    main()
