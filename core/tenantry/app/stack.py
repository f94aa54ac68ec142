"""Wraps a tenant's app in the WSGI layers that each of its requests passes through.

One list defines the order of the layers, and `_head_checks` defines the order of the head checks.
The layers of all tenants share one `ProcessResources`.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from flask import Flask

from tenantry.app.probe import endpoint_finder
from tenantry.app.process_resources import ProcessResources
from tenantry.middleware.authentication import Authentication
from tenantry.middleware.body_limit import BodyLimit
from tenantry.middleware.containment import Containment
from tenantry.middleware.cookies import CookieConfinement
from tenantry.middleware.head_checks import HeadCheck, HeadChecks
from tenantry.middleware.log_context import LogContext
from tenantry.middleware.trusted_hosts import TrustedHosts
from tenantry.settings import HostSettings
from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    Layer = Callable[[WSGIApplication], WSGIApplication]


@dataclass(frozen=True)
class Stack:
    """A tenant's app inside its layers."""

    wsgi: "WSGIApplication"
    head_checks: HeadChecks
    """The layer that decides from a request's head, which a server can ask before any layer."""


def build_stack(
    app: Flask, tenant: Tenant, settings: HostSettings, resources: ProcessResources
) -> Stack:
    """Return a tenant's app inside its layers, which raise no error except `ResponseCutError`.

    Args:
        app: the tenant's app.
        tenant: the tenant, whose keys override the host's settings.
        settings: the host's settings.
        resources: the shared resources of the process that serves the app.
    """
    logger = logging.getLogger(f"tenant.{tenant.name}")
    checks = [*_head_checks(app, tenant, settings, resources)]
    head_checks = HeadChecks(
        CookieConfinement(app, logger, has_own_origin=tenant.has_own_origin),
        tenant.name,
        checks,
        BodyLimit(tenant.max_content_length),
        next((one.is_stranger for one in checks if isinstance(one, Authentication)), None),
    )
    outermost_first: list[Layer] = [
        partial(Containment, logger=logger),
        partial(LogContext, tenant=tenant.name, config=app.config),
    ]
    wsgi: WSGIApplication = head_checks
    for layer in reversed(outermost_first):
        wsgi = layer(wsgi)
    return Stack(wsgi, head_checks)


def _head_checks(
    app: Flask, tenant: Tenant, settings: HostSettings, resources: ProcessResources
) -> Iterator[HeadCheck]:
    """Yield the head checks of a tenant in their order: host name, key or token, rate."""
    names = settings.trusted_hosts if tenant.trusted_hosts is None else tenant.trusted_hosts
    if names and not tenant.hosts:  # the router has matched a name of the tenant's own
        yield TrustedHosts(names)
    if tenant.clients is not None or tenant.oidc is not None:
        resources.guarded[tenant.name] = None
        yield Authentication(
            tenant=tenant.name,
            realm=tenant.url_prefix,
            clients=tenant.clients,
            verify=resources.token_check(tenant),
            endpoint_of=endpoint_finder(app, tenant),
            attempts=resources.failed_attempts,
        )
    if tenant.rate_limit is not None:
        # The import takes 0.3 s, so only a host with a rate limit imports `rate_limit`.
        from tenantry.middleware.rate_limit import RateLimit  # noqa: PLC0415

        yield RateLimit(resources.rates(), tenant.name, tenant.rate_limit)
