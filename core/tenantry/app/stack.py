"""The layers around a tenant's app: what a request meets between its mount and the app.

The order is the point, and stands in one list. What they share with those of other tenants is in
the `shared` of the process.
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
from tenantry.middleware.trusted_hosts import TrustedHosts
from tenantry.observability.logging import LogContext
from tenantry.settings import HostSettings
from tenantry.tenants.model import Tenant

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    Layer = Callable[[WSGIApplication], WSGIApplication]


def build_stack(
    app: Flask, tenant: Tenant, settings: HostSettings, shared: ProcessResources
) -> "WSGIApplication":
    """Return a tenant's app inside all that makes it safe; it raises only `ResponseCutError`.

    Args:
        app: built of the tenant.
        tenant: its own word goes before the host's.
        settings: what the host says.
        shared: of the process that is to serve it.
    """
    logger = logging.getLogger(f"tenant.{tenant.name}")
    most, names = tenant.max_concurrent_requests, tenant.trusted_hosts
    outermost_first: list[Layer] = [
        partial(
            ConcurrencyLimit,
            slots=shared.slots,
            tenant=tenant.name,
            most=settings.max_concurrent_requests if most is None else most,
        ),
        *_rate_gate(tenant, shared),
        partial(
            Deadlines,
            requests=shared.requests,
            tenant=tenant.name,
            deadline_s=tenant.deadline_s or settings.deadline_s,
            is_answering=(tenant.deadline_action or settings.deadline_action) == "answer",
        ),
        partial(Containment, logger=logger),
        partial(LogContext, tenant=tenant.name, config=app.config),
        partial(TrustedHosts, names=settings.trusted_hosts if names is None else names),
        *_client_gate(tenant, app, shared),
        partial(BodyLimit, max_bytes=tenant.max_content_length),
        partial(CookieConfinement, logger=logger),
    ]
    wsgi: WSGIApplication = app
    for layer in reversed(outermost_first):
        wsgi = layer(wsgi)
    return wsgi


def _rate_gate(tenant: Tenant, shared: ProcessResources) -> "list[Layer]":
    """Return the layer that counts requests; none where they are not limited."""
    if tenant.rate_limit is None:
        return []
    from tenantry.middleware.rate_limit import RateLimit  # noqa: PLC0415 - takes 0.3 s

    return [partial(RateLimit, rates=shared.rates(), tenant=tenant.name, rate=tenant.rate_limit)]


def _client_gate(tenant: Tenant, app: Flask, shared: ProcessResources) -> "list[Layer]":
    """Return the layer that lets only clients in; none where the tenant is open."""
    if tenant.clients is None and tenant.oidc is None:
        return []
    gate = partial(
        Authentication,
        realm=tenant.url_prefix,
        clients=tenant.clients,
        verify=shared.token_check(tenant),
        endpoint_of=endpoint_finder(app, tenant),
    )
    return [gate]
