"""Wraps a tenant's app in the WSGI layers that each of its requests passes through.

One list defines the order of the layers. The layers of all tenants share one `ProcessResources`.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from flask import Flask

from tenantry.app.factory import endpoint_finder
from tenantry.app.process_resources import ProcessResources
from tenantry.middleware.authentication import Authentication
from tenantry.middleware.body_limit import BodyLimit
from tenantry.middleware.concurrency import ConcurrencyLimit
from tenantry.middleware.containment import Containment
from tenantry.middleware.cookies import CookieConfinement
from tenantry.middleware.deadlines import Deadlines
from tenantry.middleware.log_context import LogContext
from tenantry.middleware.trusted_hosts import TrustedHosts
from tenantry.settings import HostSettings
from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    Layer = Callable[[WSGIApplication], WSGIApplication]


def build_stack(
    app: Flask, tenant: Tenant, settings: HostSettings, resources: ProcessResources
) -> "WSGIApplication":
    """Return a tenant's app inside its layers, which raise no error except `ResponseCutError`.

    Args:
        app: the tenant's app.
        tenant: the tenant, whose keys override the host's settings.
        settings: the host's settings.
        resources: the shared resources of the process that serves the app.
    """
    logger = logging.getLogger(f"tenant.{tenant.name}")
    most, names = tenant.max_concurrent_requests, tenant.trusted_hosts
    outermost_first: list[Layer] = [
        partial(
            ConcurrencyLimit,
            slots=resources.slots,
            tenant=tenant.name,
            most=settings.max_concurrent_requests if most is None else most,
        ),
        *_rate_limit(tenant, resources),
        partial(
            Deadlines,
            requests=resources.requests,
            tenant=tenant.name,
            deadline_s=tenant.deadline_s or settings.deadline_s,
            is_answering=(tenant.deadline_action or settings.deadline_action) == "answer",
        ),
        partial(Containment, logger=logger),
        partial(LogContext, tenant=tenant.name, config=app.config),
        partial(TrustedHosts, names=settings.trusted_hosts if names is None else names),
        *_authentication(tenant, app, resources),
        partial(BodyLimit, max_bytes=tenant.max_content_length),
        partial(CookieConfinement, logger=logger),
    ]
    wsgi: WSGIApplication = app
    for layer in reversed(outermost_first):
        wsgi = layer(wsgi)
    return wsgi


def _rate_limit(tenant: Tenant, resources: ProcessResources) -> "list[Layer]":
    if tenant.rate_limit is None:
        return []
    # The import takes 0.3 s, so a host without rate limits skips it.
    from tenantry.middleware.rate_limit import RateLimit  # noqa: PLC0415

    rates = resources.rates()
    return [partial(RateLimit, rates=rates, tenant=tenant.name, rate=tenant.rate_limit)]


def _authentication(tenant: Tenant, app: Flask, resources: ProcessResources) -> "list[Layer]":
    if tenant.clients is None and tenant.oidc is None:
        return []
    layer = partial(
        Authentication,
        realm=tenant.url_prefix,
        clients=tenant.clients,
        verify=resources.token_check(tenant),
        endpoint_of=endpoint_finder(app, tenant),
    )
    return [layer]
