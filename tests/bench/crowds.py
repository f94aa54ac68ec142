"""Compares a quiet tenant's p99 with and without many slow tenants.

    python tests/bench/crowds.py [--rounds 4] [--seconds 6] [TENANTS…]

One gunicorn serves all tenants with 2 workers of 8 threads. Four or seven tenants have 16 clients
each, and each of their requests takes 5 s. The clients honor `Retry-After`. The quiet tenant has
4 clients that send requests without a pause. Seven slow tenants leave one of the eight threads that
fair share counts, so the quiet tenant has to get a thread at once.

The benchmark measures calm windows before and after each window with slow tenants. No request of
the quiet tenant may fail, and its p99 may at most double.
"""

import argparse
import tempfile
from pathlib import Path

from loads import Bounds, serving
from neighbours import Case, add_tenants, measure, request_from_process

CLIENTS = 16
"""Number of clients of each slow tenant."""

COUNTS = (4, 7)
P99_RATIO = 2
THROUGHPUT_RATIO = 0.5


def main() -> None:
    """Measure each number of slow tenants on one server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("counts", nargs="*", type=int, choices=[[], *COUNTS])
    arguments = parser.parse_args()
    counts = arguments.counts or COUNTS
    names = tuple(f"slow{number}" for number in range(max(counts)))
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tenants").mkdir()
        add_tenants(Path(folder), names)
        with serving(Path(folder), 2) as server:
            server.wait_for("/quiet/", 201)
            for path in ("/quiet/", *(f"/{name}/" for name in names)):
                # Each of the two workers must have built each tenant before the measurement.
                request_from_process(server.port, path, 16, 0.5)
            for count in counts:
                paths = tuple(f"/{name}/sleep" for name in names[:count])
                case = Case(paths, P99_RATIO, THROUGHPUT_RATIO, CLIENTS)
                measure(f"{count} slow tenants", case, server, bounds, arguments)
    bounds.end()


if __name__ == "__main__":
    main()
