"""The host: the only room where the parts meet.

A request meets them in this order: (ProxyFix, if proxies are trusted) → front door → dispatcher →
mount → containment → log context → trusted hosts → body limit → the tenant's Flask app.
"""

import logging
from typing import TYPE_CHECKING

from werkzeug.middleware.proxy_fix import ProxyFix

from config.settings import HostSettings, read_settings
from core.app_factory import close_app, create_app
from core.catalogue import Catalogue, scan_tenants
from core.containment import Containment
from core.front import FrontDoor, TrustedHosts
from core.host_pages import HostPages, MountStatus
from core.limits import BodyLimit
from core.loader import Loader
from core.mounts import FailedMount, Instance, Mount, Mounts
from core.telemetry import LogContext, configure_logging
from core.tenant import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_logger = logging.getLogger(__name__)


class Host:
    """Every mount of this process and the host's own pages; lives as long as the process.

    `wsgi` is the WSGI app to serve. `close()` closes every instance; whoever made the host calls
    it, if the process does not simply end.
    """

    def __init__(self, settings: HostSettings) -> None:
        self.settings = settings
        self.mounts = Mounts(fallback=HostPages(self.status, is_for_operators=False))
        operators = HostPages(self.status, is_for_operators=True)
        front: WSGIApplication = FrontDoor(self.mounts, operators, settings.admin_address)
        self.wsgi = _behind_proxies(front, settings.trusted_proxies)

    def load(self) -> Catalogue:
        """Read the tenants folder and mount what it says; called once, before the host serves.

        A bad file costs its own tenant only.
        """
        settings = self.settings
        with Loader(data_dir=settings.data_dir) as loader:
            catalogue = scan_tenants(settings.tenants_dir, settings.data_dir, loader)
        mounts: list[Mount | FailedMount] = [
            Mount(tenant, self.build) for tenant in catalogue.tenants
        ]
        for rejected in catalogue.rejected:
            for problem in rejected.problems:
                _logger.error(
                    "tenant.rejected", extra={"tenant": rejected.name, "reason": str(problem)}
                )
            reason = " ".join(str(problem) for problem in rejected.problems)
            mounts.append(FailedMount(rejected.name, rejected.prefix, reason))
        self.mounts.replace(mounts)
        return catalogue

    def build(self, tenant: Tenant) -> Instance:
        """Build the instance of one tenant: its app, inside the layers that make it safe."""
        app = create_app(tenant, data_dir=self.settings.data_dir)
        layers: WSGIApplication = BodyLimit(app, tenant.max_content_length)
        names = (
            tenant.trusted_hosts
            if tenant.trusted_hosts is not None
            else self.settings.trusted_hosts
        )
        layers = TrustedHosts(layers, names)
        layers = LogContext(layers, tenant.name)
        layers = Containment(layers, logging.getLogger(f"tenant.{tenant.name}"))
        return Instance(layers, lambda: close_app(app))

    def status(self) -> list[MountStatus]:
        """Return every mount's state, in the order of names."""
        return [
            MountStatus(mount.name, mount.prefix or "", mount.state, mount.reason)
            for mount in self.mounts.all
        ]

    def close(self) -> None:
        """Close every instance. Idempotent."""
        for mount in self.mounts.all:
            mount.close()


def create_host(settings: HostSettings | None = None) -> Host:
    """Set up logging, read the tenants folder and return the host that serves it.

    Raises:
        SettingsError: a `TENANTRY_…` variable is unknown or ill-typed.
    """
    settings = settings or read_settings()
    configure_logging(settings.log_format, settings.log_level)
    host = Host(settings)
    host.load()
    return host


def _behind_proxies(app: "WSGIApplication", count: int) -> "WSGIApplication":
    if not count:
        return app
    return ProxyFix(app, x_for=count, x_proto=count, x_host=count, x_port=count, x_prefix=count)
