"""Builds tenants in a process of its own, because an endpoint may end or hang the one it is in.

`find_faults` is for commands: it tells why tenants cannot be built, whatever their endpoints do to
the process. The child (`probe_process.py`) builds one tenant after the other and says a line for
each; what it does not say, the tenant at which it fell silent has prevented.
"""

import json
import os
import pickle
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tenantry.errors import Problem
from tenantry.python_process import describe_exit, python_command
from tenantry.tenants.loader_child import write_frame
from tenantry.tenants.model import Tenant

BUILD_TIMEOUT_S = 10.0
"""How long one build may take: a usual one takes 5 ms, imports of large libraries some seconds."""

START_TIMEOUT_S = 30.0
"""How long the child may take to start: it imports Flask and more, in 0.5 s on an idle machine."""

EXIT_TIMEOUT_S = 1.0
"""How long a process may take to end whose pipe has closed."""


Routes = tuple[str, ...]
"""What a good tenant answers: `GET /images/`, without its prefix."""


@dataclass(frozen=True)
class Fault:
    """Why a tenant cannot be built."""

    text: str
    endpoint: str | None = None
    """The endpoint that is to blame, if it is one."""
    is_fatal: bool = False
    """It ended or hung the process."""


def find_faults(
    tenants: Sequence[Tenant], data_dir: Path, *, only_endpoints: bool = False
) -> Iterator[tuple[Tenant, Problem]]:
    """Yield, with its tenant, each problem that building shows. Raises nothing for any of them.

    Each endpoint is tried first, alone, with the first tenant that enables it: one that ends or
    hangs its process costs that once, however many tenants enable it.

    Args:
        tenants: those to build.
        data_dir: where their folders are.
        only_endpoints: build no more than it takes to know each endpoint; quick with many tenants.
    """
    firsts = {name: tenant for tenant in reversed(tenants) for name in tenant.blueprints}
    trials = [
        tenant.model_copy(update={"blueprints": (name,)}) for name, tenant in sorted(firsts.items())
    ]
    bad = {
        trial.blueprints[0]: fault
        for trial, fault in zip(trials, _build_all(trials, data_dir), strict=True)
        if isinstance(fault, Fault)
    }
    fatal = {name: fault for name, fault in bad.items() if fault.is_fatal}
    to_build = [
        tenant
        for tenant in tenants
        if not fatal.keys() & {*tenant.blueprints}
        and (not only_endpoints or bad.keys() & {*tenant.blueprints})
    ]
    faults = dict(zip((one.name for one in to_build), _build_all(to_build, data_dir), strict=True))
    for tenant in tenants:
        yield from ((tenant, problem) for problem in _problems(tenant, faults, fatal))


def find_routes(tenants: Sequence[Tenant], data_dir: Path) -> list[Routes]:
    """Return what each tenant answers, without its prefix; nothing where it cannot be built."""
    built = _build_all(tenants, data_dir)
    return [() if isinstance(one, Fault) else one for one in built]


def _problems(
    tenant: Tenant, faults: Mapping[str, Fault | Routes], fatal: Mapping[str, Fault]
) -> Iterator[Problem]:
    for place, name in enumerate(tenant.blueprints):
        if name in fatal:
            text = f"endpoint {name!r} {fatal[name].text}; mend the endpoint."
            yield Problem(tenant.file, text, f"BLUEPRINTS[{place}]")
    fault = faults.get(tenant.name)
    if not isinstance(fault, Fault):
        return
    if fault.endpoint in tenant.blueprints:
        place = tenant.blueprints.index(fault.endpoint)
        yield Problem(tenant.file, fault.text, f"BLUEPRINTS[{place}]")
    else:
        yield Problem(tenant.file, f"cannot be built: {fault.text}")


def _build_all(tenants: Sequence[Tenant], data_dir: Path) -> list[Fault | Routes]:
    """Return what each tenant's build shows, in their order."""
    results: list[Fault | Routes] = []
    while len(results) < len(tenants):
        with _Child(tenants[len(results) :], data_dir) as child:
            if not child.is_ready():
                fault = Fault("cannot be tried: the process for that does not start")
                return results + [fault] * (len(tenants) - len(results))
            results += child.results()
    return results


class _Child:
    """The process that builds, until the end of a `with` block. For one thread."""

    def __init__(self, tenants: Sequence[Tenant], data_dir: Path) -> None:
        self._tenants = tenants
        self._received = bytearray()
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            python_command(f"from {__package__}.trial_build_process import main; main()"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process that builds has no pipes")
        self._stdin, self._stdout = stdin, stdout
        with suppress(BrokenPipeError):  # it could not start: it will not answer either
            write_frame(stdin.fileno(), pickle.dumps((tenants, data_dir.absolute())))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):  # its session, with whatever an endpoint started
            os.killpg(self._process.pid, signal.SIGKILL)
        self._stdin.close()
        self._stdout.close()
        self._process.wait()

    def is_ready(self) -> bool:
        """Wait until it has started; whether it has."""
        return self._next_answer(START_TIMEOUT_S) == b"{}"

    def results(self) -> Iterator[Fault | Routes]:
        """Yield what each build shows, up to the one that ends or hangs the process."""
        for _ in self._tenants:
            line = self._next_answer(BUILD_TIMEOUT_S)
            try:
                said = json.loads(line or b"")
                result = (
                    tuple(map(str, said["routes"]))
                    if "routes" in said
                    else Fault(said["text"], said["endpoint"])
                )
            except (ValueError, LookupError, TypeError):  # silence, or an endpoint's own writing
                yield Fault(self._how_it_went(), is_fatal=True)
                return
            yield result

    def _next_answer(self, timeout_s: float) -> bytes | None:
        """Return the next line; None if none comes in time, or ever."""
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._stdout.fileno(), select.POLLIN)
        while b"\n" not in self._received:
            if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
                return None
            part = os.read(self._stdout.fileno(), 1 << 16)
            if not part:
                return None
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return bytes(line)

    def _how_it_went(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            return f"ends its process ({describe_exit(self._process.wait(EXIT_TIMEOUT_S))})"
        return f"does not finish in {BUILD_TIMEOUT_S:g} s"
