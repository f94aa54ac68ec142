"""Provides `tenantry.tenant`, an app context of a tenant for scripts, jobs and notebooks.

A process that serves lends the app that it serves. Any other process builds an app of its own for
each tenant, once for each content of the tenant file. These builds run no migrations. They create
missing secrets (`secret("…", create=True)`), because the tenant's code is going to run.
"""

import atexit
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

from flask import Flask

from tenantry.app.factory import close_app, create_app
from tenantry.database.budget import ConnectionBudget
from tenantry.errors import TenantryError
from tenantry.files.memory_budget import DECODING_BYTES, DECODING_WAIT_S, MemoryBudget
from tenantry.migrations.guard import forbid_upgrades
from tenantry.observability.redaction import secret_scope
from tenantry.private_code.latest_builds import BUILD_WAIT_S
from tenantry.private_code.sources import Sources
from tenantry.routing.instance import Instance
from tenantry.settings import HostSettings, read_settings
from tenantry.tenants.catalogue import check_tenant_exists
from tenantry.tenants.file import FileContent, is_open_for_writing, read_content
from tenantry.tenants.folder import SETTLE_S, WRITER_PATIENCE_S
from tenantry.tenants.loader import Loader
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import load_content, validate_loaded

Lend = Callable[[str], Instance | None]
"""A function that leases the instance that a process serves for a tenant, or returns None."""


@contextmanager
def tenant(name: str) -> Iterator[Flask]:
    """Push an app context of a tenant for the `with` block, and yield the tenant's app.

    The settings are those of the host: `TENANTRY_TENANTS_DIR`, `TENANTRY_DATA_DIR` and
    `TENANTRY_APP_DIR`, by default in the current folder. The app is built at the first use, and
    again when the tenant file has changed. Maintenance, and the commands `disable` and
    `maintenance`, concern only requests. Thread-safe.

    Raises:
        UnknownTenantError: the tenant has no file.
        TenantFileError: the tenant file is rejected.
        TenantryError: the tenant file sets `ENABLED = False`.
        EndpointError: an endpoint of the tenant fails to import or register.
        SettingsError: a `TENANTRY_…` variable is unknown or invalid.
    """
    apps = context_apps(os.getpid())
    instance = apps.lease(name)
    try:
        app = cast("Flask", instance.app and instance.app())  # a lease keeps the app alive
        with secret_scope(app.config), app.app_context():
            yield app
    finally:
        instance.end_lease()
        apps.evict()


# The apps of each process. A forked process must not close the connections of its parent, and so
# the apps of the parent stay in the dict.
_apps: dict[int, "ContextApps"] = {}


def context_apps(process: int) -> "ContextApps":
    """Return the apps of this process. A forked process builds apps of its own."""
    apps = _apps.get(process)
    if apps is None:
        created = ContextApps()
        apps = _apps.setdefault(process, created)  # atomic; a lock could be held during a fork
        if apps is created:
            atexit.register(_close_at_exit, apps, process)
    return apps


def _close_at_exit(apps: "ContextApps", process: int) -> None:
    if process == os.getpid():
        apps.close()


class _Slot:
    """The latest build of one tenant. `key` and `instance` change only while `lock` is held."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held while the tenant is built
        self.key: tuple[HostSettings, str] | None = None
        """The settings, and the digest of the tenant file, of the build."""
        self.instance: Instance | None = None

    @property
    def is_unused(self) -> bool:
        return self.instance is not None and not self.instance.leases

    def retire(self) -> None:
        """Close the app after its last use. The caller has removed the slot."""
        if self.instance is not None:
            self.instance.retire()


class ContextApps:
    """The apps that `tenant` has built in one process. Thread-safe. `close` closes all apps."""

    def __init__(self) -> None:
        self.lend: Lend | None = None
        """Leases an instance that the process serves, if the process is a host."""
        self._lock = threading.Lock()  # protects the attributes below
        # The builds by tenant, least recently used first.
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._max_active = 1
        self._sources = Sources()  # all builds of a process run the same version of the code
        self._budget: ConnectionBudget | None = None
        self._decoding_memory = MemoryBudget(DECODING_BYTES, DECODING_WAIT_S)

    def lease(self, name: str) -> Instance:
        """Return the instance of a tenant, which is built if necessary, with a lease.

        The caller ends the lease with `Instance.end_lease`, and then calls `evict`.
        """
        lent = None if self.lend is None else self.lend(name)
        return lent or self._lease_own(name, read_settings())

    def evict(self) -> None:
        """Close the least recently used apps above `TENANTRY_MAX_ACTIVE`, unless they are used."""
        with self._lock:
            surplus = max(len(self._slots) - self._max_active, 0)
            unused = [name for name, slot in self._slots.items() if slot.is_unused][:surplus]
            slots = [self._slots.pop(name) for name in unused]
        for slot in slots:
            slot.retire()

    def close(self) -> None:
        """Close every app after its last use. Idempotent; a later use builds again."""
        with self._lock:
            slots, self._slots = self._slots, OrderedDict()
            sources, self._sources = self._sources, Sources()
        for slot in slots.values():
            slot.retire()
        sources.close()

    def _lease_own(self, name: str, settings: HostSettings) -> Instance:
        while True:
            content = _stable_content(settings, name, self._slots.get(name))
            if content.error is not None:
                self._drop(name)
                check_tenant_exists(settings, name)
                raise content.error
            slot = self._slot(name, settings)
            instance = self._current(slot, settings, content)
            if not instance.begin_lease():  # another thread has just retired the instance
                continue
            if self._slots.get(name) is not slot:  # evicted during the build
                slot.retire()
            return instance

    def _slot(self, name: str, settings: HostSettings) -> _Slot:
        with self._lock:
            self._max_active = settings.max_active
            self._budget = self._budget or ConnectionBudget(settings.db_connections)
            slot = self._slots.setdefault(name, _Slot())
            self._slots.move_to_end(name)
            return slot

    def _drop(self, name: str) -> None:
        with self._lock:
            slot = self._slots.pop(name, None)
        if slot is not None:
            slot.retire()

    def _current(self, slot: _Slot, settings: HostSettings, content: FileContent) -> Instance:
        """Return the build of a content, which this call builds if necessary."""
        if not slot.lock.acquire(timeout=BUILD_WAIT_S):
            raise TenantryError(
                f"the build of tenant {content.path.stem!r} has not ended after {BUILD_WAIT_S:g} "
                "s; do not use tenantry.tenant in code that runs while the app is built."
            )
        try:
            former = slot.instance
            if (
                former is not None
                and not former.is_closed
                and slot.key == (settings, content.digest)
            ):
                return former
            slot.instance = instance = self._build(_load(content, settings), settings)
            slot.key = (settings, content.digest)
        finally:
            slot.lock.release()
        if former is not None:
            former.retire()
        return instance

    def _build(self, tenant: Tenant, settings: HostSettings) -> Instance:
        app = create_app(
            tenant,
            data_dir=settings.data_dir,
            budget=self._budget,
            decoding_memory=self._decoding_memory,
            sources=self._sources,
        )
        forbid_upgrades(app)
        return Instance(app, partial(close_app, app), app)


def _stable_content(settings: HostSettings, name: str, slot: _Slot | None) -> FileContent:
    """Return the content of a tenant file. Wait until a change of a built tenant is complete."""
    path = settings.tenants_dir / f"{name}.py"
    content = read_content(path)
    deadline = time.monotonic() + WRITER_PATIENCE_S
    built = None if slot is None or slot.key is None else slot.key[1]
    while built and content.digest != built and time.monotonic() < deadline:
        time.sleep(SETTLE_S)
        before, content = content, read_content(path)
        if content.digest == before.digest and not is_open_for_writing(str(path)):
            break
    return content


def _load(content: FileContent, settings: HostSettings) -> Tenant:
    with Loader(data_dir=settings.data_dir, creates_secrets=True) as loader:
        tenant = validate_loaded(load_content(content, loader), settings)
    if not tenant.enabled:
        raise TenantryError(
            f"{tenant.file}: 'ENABLED': tenant {tenant.name!r} is disabled; set ENABLED = True."
        )
    return tenant
