"""The crash report names the thread that crashed, and can be read after the process has ended."""

import ctypes
import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tenantry.server.crash_report import CrashReport, oom_counter


@pytest.fixture(name="report")
def _report() -> Iterator[CrashReport]:
    report = CrashReport()
    yield report
    report.close()
    report.close()


def _end_in_thread(report: CrashReport, act: Callable[[], object]) -> tuple[bool, int]:
    """Run `act` in a child's thread. Return whether the report names it, and the exit code."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        faulthandler.disable()  # disable the faulthandler of pytest
        report.enable()

        def end() -> None:
            os.write(writing, threading.get_ident().to_bytes(8, "big"))
            act()

        thread = threading.Thread(target=end)
        thread.start()
        thread.join()
        os._exit(9)
    os.close(writing)
    ident = int.from_bytes(os.read(reading, 8), "big")
    os.close(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return report.thread() == ident, code


@pytest.mark.parametrize(
    ("act", "is_named", "code"),
    [
        (lambda: ctypes.string_at(0), True, -signal.SIGSEGV),
        (os.abort, True, -signal.SIGABRT),
        (lambda: os._exit(7), True, 7),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), True, -signal.SIGKILL),
        (lambda: signal.raise_signal(signal.SIGKILL), False, -signal.SIGKILL),
    ],
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_crashed_thread_is_named(
    report: CrashReport, act: Callable[[], object], is_named: bool, code: int
) -> None:
    """The report names the thread that ends the process; a kill from outside leaves no name."""
    assert (is_named, code) == _end_in_thread(report, act)


@pytest.mark.parametrize(
    ("own_cgroup", "counter"),
    [
        ("7:memory:/old\n0::/tenantry.service\n", "cgroup/tenantry.service/memory.events"),
        ("0::/tenantry.service/worker\n", "cgroup/tenantry.service/memory.events"),
        ("0::/other.service\n", "proc/vmstat"),
        ("0::/\n", "proc/vmstat"),
        ("7:memory:/old\n", "proc/vmstat"),
        ("0::/../neighbour\n", "proc/vmstat"),
    ],
)
def test_kills_for_lack_of_memory_count_in_the_own_cgroup(
    tmp_path: Path, own_cgroup: str, counter: str
) -> None:
    """The nearest cgroup with a memory controller counts; without one, the whole machine counts."""
    for folder in ("proc/self", "cgroup/tenantry.service/worker", "cgroup/other.service"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "cgroup/tenantry.service/memory.events").write_text("oom_kill 0\n")
    (tmp_path / "proc/self/cgroup").write_text(own_cgroup)

    found = oom_counter(tmp_path / "proc", tmp_path / "cgroup")

    assert tmp_path / counter == found
