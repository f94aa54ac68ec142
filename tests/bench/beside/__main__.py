"""Compares Tenantry with the servers and setups that people would use instead, in one table.

    python tests/bench/beside [--quick] [--pictures FOLDER]

All sides serve the landing endpoint. Bare Flask apps run on gunicorn's threaded worker, waitress,
granian and uWSGI. Many tenants run in a hand-written `DispatcherMiddleware` that builds all apps at
the start, in one gunicorn per tenant behind nginx, in the uWSGI Emperor behind nginx, and in
`tenantry serve`. Each side writes a log line for each request to a file, unless the name of the
side says otherwise. waitress has one process and no access log.

- Requests: 2 workers of 8 threads (waitress: 16 threads) and one tenant. All sides run at the same
  time and get short windows of load in turn. The processor time is that of all processes of a
  side, the proxy included. wrk sends the requests. The p99 is that of four of our own clients among
  wrk's clients, because wrk does not count a client that never gets a response.
- Growth: start and memory with 10 and 100 tenants, and for sides with all tenants in one process
  also with 1,000 and 10,000. A side with a process per tenant has 1 worker of 8 threads for each
  tenant. The other sides have 2 workers. The measured start ends with the first response of the
  last tenant. Memory is the proportional set size of all processes, once before further requests
  and once after two requests to each tenant (one request with 10,000 tenants). A worker of Tenantry
  keeps at most 1,000 apps built.
- Changes, with 10 tenants: the time from a new tenant file to the tenant's first response,
  including the reload that a side needs. After that, one tenant's file changes, and keep-alive
  clients count failed requests and the longest wait. A side with one app reloads its app. If the
  server closes a kept connection as a request arrives, the request counts as failed.

The table says where another side is better than Tenantry. The full run takes under 20 minutes,
checks Tenantry's bounds, and draws the pictures of the README. With `--quick`, one short round
checks that each side runs, without bounds. The benchmark names each side whose programs are not
installed, and leaves the side out.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # make `loads` importable

import growth
import pictures
import speed
from loads import Bounds
from service import program
from sides import COUNTS, FEW, MANY, MOST, SIDES, SOME, TENANTRY, Side
from table import Row, Table, shown

ROWS = (
    *(speed.COST, speed.RATE, speed.RATE_NEW, speed.P99_FEW, speed.P99_MANY),
    *(row[count] for row in (growth.START, growth.UNVISITED, growth.MEMORY) for count in COUNTS),
    *(growth.NEW_TENANT, speed.FAILED, speed.LONGEST),
)
PACKAGES = {"granian": "pip install -e '.[bench]'", "nginx": "apt-get install nginx-light"}


@dataclass(frozen=True)
class Plan:
    """The number and the length of the measurements of a run."""

    starts: int
    """Number of times that all sides start, because each start changes the cost by some percent."""
    sweeps: int
    seconds: int
    """Number of seconds in a window of load."""
    growth: dict[int, int]
    """Number of rounds for each number of tenants."""
    reload_s: float
    """Seconds for which clients watch after a change. The Emperor looks for changes every 3 s."""
    reloads_bare_apps: bool


FULL = Plan(2, 3, 2, {FEW: 2, SOME: 2, MANY: 1, MOST: 1}, 6.0, reloads_bare_apps=True)
QUICK = Plan(1, 1, 1, {FEW: 1}, 1.0, reloads_bare_apps=False)


def main() -> None:
    """Measure all sides, print the table, and draw the pictures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one short round, without bounds")
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER",
        help="folder of the pictures (default: tests/bench in a full run, else none)",
    )  # fmt: skip
    arguments = parser.parse_args()
    if program("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    sides = installed_sides(is_quick=arguments.quick)
    table = Table(TENANTRY.name, ROWS)
    measure(table, sides, QUICK if arguments.quick else FULL)
    print("\n".join(table.lines()))
    print("\nAnother side is better than Tenantry:", *table.better(), sep="\n")
    folder = arguments.pictures or (None if arguments.quick else Path(__file__).parents[1])
    if folder is not None:
        draw(table, folder)
    if not arguments.quick:
        check_bounds(table)


def installed_sides(*, is_quick: bool) -> list[Side]:
    """Return the sides of the run, and print each side that lacks a program."""
    found = []
    for side in SIDES:
        if is_quick and not side.is_short_run:
            continue
        missing = side.missing()
        for name in missing:
            remedy = PACKAGES.get(name, "pip install -e '.[bench]'")
            print(f"left out: {side.name}: {name} is not installed: {remedy}")
        if not missing:
            found.append(side)
    return found


def measure(table: Table, sides: list[Side], plan: Plan) -> None:
    """Measure every side as the plan says."""
    folders = map("round{}".format, itertools.count())
    with tempfile.TemporaryDirectory() as name:
        for start in range(plan.starts):
            report(f"requests, start {start + 1} of {plan.starts}")
            reload_s = plan.reload_s if plan.reloads_bare_apps else 0.0
            folder = Path(name, next(folders))
            speed.measure(
                table,
                sides,
                folder,
                sweeps=plan.sweeps,
                seconds=plan.seconds,
                reload_s=reload_s,
            )
        for count, rounds in plan.growth.items():
            for number in range(rounds):
                report(f"{count} tenants, round {number + 1} of {rounds}")
                growth.measure(table, sides, Path(name, next(folders)), count, plan.reload_s)
    report("end")


def report(text: str) -> None:
    """Print the progress to stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def draw(table: Table, folder: Path) -> None:
    """Write the two pictures of the README."""
    folder.mkdir(exist_ok=True)
    cost = pictures.Group("", _bars(table, speed.COST))
    title = "Processor time per request (less is better)"
    (folder / "processor-time.svg").write_text(pictures.draw(title, [cost], TENANTRY.name))
    groups = [
        pictures.Group(f"{count:,} tenants", _bars(table, growth.MEMORY[count]))
        for count in (FEW, SOME, MANY)
        if growth.MEMORY[count] in table.figures
    ]
    title = "Memory of all processes after requests to every tenant (less is better)"
    (folder / "memory.svg").write_text(pictures.draw(title, groups, TENANTRY.name))


def _bars(table: Table, row: Row) -> list[pictures.Bar]:
    bars = []
    for side, figures in table.figures[row].items():
        median = statistics.median(figures)
        bars.append(pictures.Bar(side, median, f"{shown(median)} {row.unit}"))
    return bars


def check_bounds(table: Table) -> None:
    """Compare Tenantry with the bare app on gunicorn's threaded worker."""
    bounds = Bounds()
    print()
    for row, bound in ((speed.COST, 0.60), (speed.P99_FEW, 1), (speed.P99_MANY, 1)):
        ratio = table.ratio(row, TENANTRY.name)
        bounds.check(f"{row.title}: Tenantry ÷ {row.base}", ratio, bound)
    for row, bound in ((speed.RATE, 1.5), (speed.RATE_NEW, 1.2)):
        ratio = 1 / table.ratio(row, TENANTRY.name)
        bounds.check(f"{row.title}: {row.base} ÷ Tenantry", ratio, 1 / bound)
    bounds.end()


if __name__ == "__main__":
    main()
