"""The compared servers: how each side starts, adds a tenant and applies a changed tenant file."""

import signal
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field

import proxy
from service import Service, program

THREADS = 8
BOOT_S = "600"
"""gunicorn's timeout in seconds, because 10,000 apps take longer to build than gunicorn's default
of 30 s."""

PACKAGES = sysconfig.get_path("purelib")
"""The `PYTHONPATH` of uWSGI. On HUP, uWSGI starts again with a Python outside of the virtual
environment."""

FEW, SOME, MANY, MOST = 10, 100, 1_000, 10_000
COUNTS = (FEW, SOME, MANY, MOST)


@dataclass(frozen=True)
class Side:
    """A server, or a server and a proxy, that serves one app or many tenants."""

    name: str
    start: Callable[[Service], None]
    reload: Callable[[Service], None]
    """Makes a changed tenant file take effect for the tenant `t0`."""
    reload_needs: str
    programs: tuple[str, ...] = ("gunicorn",)
    add: Callable[[Service, str], None] | None = None
    """Makes a new tenant file take effect; None for a side that serves one app."""
    add_needs: str = ""
    max_tenants: int = 1
    is_short_run: bool = field(default=True, kw_only=True)
    """Whether `--quick` includes the side."""

    def missing(self) -> list[str]:
        """Return the programs that the side needs and that are not installed."""
        return [name for name in self.programs if program(name) is None]

    def path(self, name: str) -> str:
        """Return the address of a tenant's landing page."""
        return f"/{name}/?name=Ada" if self.max_tenants > 1 else "/?name=Ada"


# -- one app, without tenants ---------------------------------------------------------------------


def _hang_up(service: Service) -> None:
    service.signal(signal.SIGHUP)


def _gunicorn(service: Service, app: str, *options: str) -> tuple[str, ...]:
    workers = ("--workers", str(service.workers), "--threads", str(THREADS))
    # all gunicorns of a user share the control socket
    boot = ("--timeout", BOOT_S, "--no-control-socket")
    return ("gunicorn", "-k", "gthread", *workers, *boot, *options, app)


def _start_gthread(service: Service) -> None:
    log = ("--access-logfile", "log/access.log")
    command = _gunicorn(service, "one_app:application", "--bind", service.bind, *log)
    service.run(*command, TENANT="t0")


def _start_gthread_without_log(service: Service) -> None:
    service.run(*_gunicorn(service, "one_app:application", "--bind", service.bind), TENANT="t0")


def _start_waitress(service: Service) -> None:
    threads = f"--threads={service.workers * THREADS}"
    service.run(
        *("waitress-serve", f"--listen={service.bind}", threads, "one_app:application"),
        TENANT="t0",
    )


def _restart_waitress(service: Service) -> None:
    service.end()
    _start_waitress(service)


def _granian(service: Service, *options: str) -> None:
    service.run(
        *("granian", "--interface", "wsgi", "--host", "127.0.0.1", "--port", str(service.port)),
        *("--workers", str(service.workers), "--blocking-threads", str(THREADS), *options),
        "one_app:application",
        TENANT="t0",
    )


def _start_granian(service: Service) -> None:
    _granian(service, "--access-log")  # the log goes to standard output, which is a file


def _start_uwsgi(service: Service) -> None:
    service.run(
        *("uwsgi", "--http11-socket", service.bind, "--master", "--die-on-term", "--need-app"),
        *("--virtualenv", sys.prefix, "--pythonpath", ".", "--module", "one_app:application"),
        *("--workers", str(service.workers), "--threads", str(THREADS)),
        TENANT="t0",
        PYTHONPATH=PACKAGES,
    )


# -- many tenants ---------------------------------------------------------------------------------


def _start_dispatcher(service: Service) -> None:
    log = ("--access-logfile", "log/access.log")
    service.run(*_gunicorn(service, "all_apps:application", "--bind", service.bind, *log))


def _start_gunicorns(service: Service) -> None:
    for name in service.names:
        _start_gunicorn_of(service, name)
        proxy.add_upstream(service, name)
    proxy.start(service, proxy.UPSTREAMS)


def _start_gunicorn_of(service: Service, name: str) -> None:
    log = ("--access-logfile", f"log/{name}-access.log")
    command = _gunicorn(service, "one_app:application", "--bind", f"unix:run/{name}.sock", *log)
    service.run(*command, key=name, TENANT=name)


def _hang_up_first(service: Service) -> None:
    service.signal(signal.SIGHUP, "t0")


def _add_gunicorn(service: Service, name: str) -> None:
    _start_gunicorn_of(service, name)
    proxy.add_upstream(service, name)
    service.signal(signal.SIGHUP, "nginx")


def _start_emperor(service: Service) -> None:
    for name in service.names:
        _write_vassal(service, name)
    # The program of the package `pyuwsgi` is a Python script, which the Emperor cannot find alone.
    wrapper = ("--emperor-wrapper", str(program("uwsgi")))
    command = ("uwsgi", "--emperor", "vassals", "--die-on-term", *wrapper)
    service.run(*command, PYTHONPATH=PACKAGES)
    proxy.start(service, proxy.VASSALS)


def _write_vassal(service: Service, name: str) -> None:
    folder = service.folder
    # Python has started before uWSGI sets a vassal's environment, so the name is in a module.
    module = f"from one_app import build\n\napplication = build({name!r})\n"
    (folder / f"app_{name}.py").write_text(module)
    lines = [
        *("[uwsgi]", f"socket = {folder}/run/{name}.sock", "chmod-socket = 666", "master = true"),
        *("need-app = true", f"virtualenv = {sys.prefix}", f"chdir = {folder}"),
        *(f"pythonpath = {folder}", f"module = app_{name}:application"),
        *(f"workers = {service.workers}", f"threads = {THREADS}"),
        f"logto = {folder}/log/{name}.log",
    ]
    (folder / "vassals" / f"{name}.ini").write_text("\n".join(lines) + "\n")


def _start_tenantry(service: Service) -> None:
    workers = ("--workers", str(service.workers), "--threads", str(THREADS))
    service.run(
        *("tenantry", "serve", "--bind", service.bind, *workers),
        TENANTRY_ADMIN_BIND="off",
        TENANTRY_LOG_FORMAT="json",
    )


def _nothing(*_: object) -> None:
    """Do nothing, because Tenantry follows the tenants folder."""


# -- all sides ------------------------------------------------------------------------------------

BASE = Side("gunicorn gthread", _start_gthread, _hang_up, "HUP")
TENANTRY = Side(
    "Tenantry", _start_tenantry, _nothing, "no command", ("tenantry",),
    _nothing, "no command", MOST,
)  # fmt: skip
SIDES = (
    BASE,
    Side(
        "gunicorn gthread (no log)", _start_gthread_without_log, _hang_up, "HUP",
        is_short_run=False,
    ),
    Side("waitress (no log)", _start_waitress, _restart_waitress, "a restart", ("waitress-serve",)),
    Side("granian", _start_granian, _hang_up, "HUP", ("granian",)),
    Side("granian (no log)", _granian, _hang_up, "HUP", ("granian",), is_short_run=False),
    Side("uWSGI", _start_uwsgi, _hang_up, "HUP", ("uwsgi",)),
    Side(
        "DispatcherMiddleware", _start_dispatcher, _hang_up, "HUP", ("gunicorn",),
        lambda service, _: _hang_up(service), "HUP", MOST,
    ),
    Side(
        "gunicorn per tenant", _start_gunicorns, _hang_up_first, "HUP of its gunicorn",
        ("gunicorn", "nginx"), _add_gunicorn, "a new gunicorn, HUP of nginx", SOME,
    ),
    Side(
        "uWSGI Emperor", _start_emperor, lambda service: _write_vassal(service, "t0"),
        "a new vassal file", ("uwsgi", "nginx"),
        _write_vassal, "a vassal file", SOME,
    ),
    TENANTRY,
)  # fmt: skip
