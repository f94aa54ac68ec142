"""Measures how much a process grows when one tenant is replaced 2,000 times.

    python tests/bench/swaps.py

The benchmark runs a host in one process and drives the follower of the tenants folder step by step.
The clock jumps, so the benchmark does not wait. For each swap, the benchmark rewrites the tenant
file, the loader process runs the file, the new app is built beside the old app and replaces it, and
a request checks the new version. Every 20th version is broken at first. The process may grow by at
most 2,048 KiB of memory, and by no threads or file descriptors.
"""

import gc
import os
import sys
import tempfile
import time
from pathlib import Path

from loads import Bounds, Usage, make_site, usage, versioned_tenant_text
from werkzeug.test import Client

from tenantry.host import Host
from tenantry.reload.follower import Follower
from tenantry.settings import HostSettings
from tenantry.tenants.folder import TenantsFolder

WARM_UP = 200
SWAPS = 2_000
REPORT_EVERY = 500
BROKEN_EVERY = 20
JUMP_S = 0.3
GROWTH_KIB = 2048
"""Maximum growth of resident memory: 1 KiB per swap, to allow for noise of the allocator."""


class Clock:
    """A clock that the benchmark sets, in place of the monotonic and the file system's clock."""

    def __init__(self) -> None:
        self.now = time.time() + 10

    def __call__(self) -> float:
        """Return the current time in seconds."""
        return self.now


def main() -> None:
    """Swap the tenant, and print the resources after every 500 swaps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        swaps = Swaps(folder)
        swaps.do(WARM_UP)
        first = last = resources()
        print(f"  after {WARM_UP:>5} swaps: {first}")
        begun = time.perf_counter()
        for done in range(REPORT_EVERY, SWAPS + 1, REPORT_EVERY):
            swaps.do(REPORT_EVERY)
            last = resources()
            print(f"  after {WARM_UP + done:>5} swaps: {last}", flush=True)
        print(f"  {1000 * (time.perf_counter() - begun) / SWAPS:.1f} ms per swap")
        bounds = Bounds()
        bounds.check("growth of memory", last.rss_kib - first.rss_kib, GROWTH_KIB, " KiB")
        bounds.check("growth of threads", last.threads - first.threads, 0)
        bounds.check("growth of file descriptors", last.fds - first.fds, 0)
        swaps.host.close()
        bounds.end()


class Swaps:
    """A host with a tenants folder and a follower that the benchmark drives step by step."""

    def __init__(self, folder: Path) -> None:
        self._path = make_site(folder) / "acme.py"
        sys.path.insert(0, str(folder))
        settings = HostSettings(tenants_dir=self._path.parent, data_dir=folder / "instance")
        self.host = Host(settings)
        self._clock = Clock()
        self._follower = self.host.follower = Follower(
            TenantsFolder(settings.tenants_dir, clock=self._clock, wall_clock=self._clock),
            settings,
            self.host.router,
            self.host.build,
            clock=self._clock,
        )
        self._client = Client(self.host.router)
        self._version = 0

    def do(self, count: int) -> None:
        """Replace the tenant `count` times, and check each version with a request."""
        for _ in range(count):
            self._version += 1
            text = versioned_tenant_text("acme", self._version)
            if self._version % BROKEN_EVERY == 0:
                self._path.write_text("raise ValueError\n" + text)
                self._step_until_state("stale")
            self._path.write_text(text)
            self._step_until_served()

    def _round(self) -> None:
        self._clock.now += JUMP_S
        self._follower.scan_soon()
        self._follower.step()
        time.sleep(0.0005)  # Let a worker thread of the follower run.

    def _step_until_state(self, state: str) -> None:
        for _ in range(5_000):
            self._round()
            if self.host.router.mounts and self.host.router.mounts[0].state == state:
                return
        raise SystemExit(f"never {state}: {self.host.status()}")

    def _step_until_served(self) -> None:
        for _ in range(5_000):
            self._round()
            with self._client.get("/acme/") as response:
                if response.text.split()[1:2] == [str(self._version)]:
                    return
        raise SystemExit(f"version {self._version} was never served: {self.host.status()}")


def resources() -> Usage:
    """Collect garbage, and return the memory, threads and descriptors of this process."""
    gc.collect()
    return usage(os.getpid())


if __name__ == "__main__":
    main()
