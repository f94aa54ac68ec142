"""What the audit finds and how long it takes: samples, 50 and 200 tenants, reloads, planted leaks.

    python tests/bench/audit.py [samples] [fifty] [reloads] [leaks] [replay] [many]

Prints a line per part, and ends with 1 where one does not hold. The whole takes some minutes.
"""

import argparse
import os
import secrets
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from flask import Flask
from loads import Bounds, wait_until

import leaks
from tenantry.audit.finding import AuditedTenant
from tenantry.audit.replay import replay
from tenantry.audit.run import audit
from tenantry.audit.shared_objects import process_listeners
from tenantry.cli.audit import audit_folder
from tenantry.endpoints.loading import available_endpoints
from tenantry.host import Host, create_host
from tenantry.settings import HostSettings
from tenantry.tenants.model import parse_tenant

ROOT = Path(__file__).parents[2]
RELOADS = 100


def main() -> None:
    """Run the parts that were asked for."""
    parts = {
        "samples": samples, "fifty": fifty, "reloads": reloads, "leaks": planted,
        "replay": one_key, "many": many,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description="What the audit finds, and how long it takes.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; or all")
    asked = parser.parse_args().parts or [*parts]
    bounds = Bounds()
    for name in asked:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            (Path(folder) / "tenants").mkdir()
            parts[name](bounds, Path(folder))
    bounds.end()


def settings_of(folder: Path) -> HostSettings:
    """Return the settings of a host over one folder."""
    return HostSettings(
        tenants_dir=folder / "tenants", data_dir=folder / "instance", log_level="error"
    )


def write(folder: Path, count: int) -> None:
    """Write tenants with every endpoint that there is, and a client each."""
    for number in range(count):
        text = f"SECRET_KEY = {secrets.token_hex(32)!r}\nBLUEPRINTS = {available_endpoints()!r}\n"
        text += f"CLIENTS = {{'web': 'sha256:{secrets.token_hex(32)}'}}\n"
        (folder / f"tenants/t{number}.py").write_text(text)


def samples(bounds: Bounds, folder: Path) -> None:
    """Audit what comes with Tenantry."""
    settings = settings_of(folder).model_copy(update={"tenants_dir": ROOT / "tenants"})
    found = [one.id for one in audit_folder(settings)[0] if one.is_problem]
    bounds.check(f"findings in the samples {found}", len(found), 0)


def fifty(bounds: Bounds, folder: Path) -> None:
    """Audit 50 tenants with all endpoints."""
    write(folder, 50)
    found = [one.id for one in audit_folder(settings_of(folder))[0] if one.is_problem]
    bounds.check(f"findings in 50 tenants {found}", len(found), 0)


def reloads(bounds: Bounds, folder: Path) -> None:
    """Audit a host that has reloaded a tenant's file again and again."""
    write(folder, 3)
    host = create_host(settings_of(folder))
    listeners = process_listeners()
    host.load()
    for mount in host.router.mounts:
        mount.ensure_instance()
    path = folder / "tenants/t0.py"
    text = path.read_text()
    for number in range(RELOADS):
        path.write_text(f"{text}VERSION = {number}\n")
        wait_until(partial(serves, host, number), every_s=0.05)
    audited = audited_of(host)
    assert audited[0].app.config["VERSION"] == RELOADS - 1
    found = audit(audited, host.settings.data_dir, known_listeners=listeners)
    host.close()
    ids = [one.id for one in found if one.is_problem]
    bounds.check(f"findings after {RELOADS} reloads {ids}", len(ids), 0)


def serves(host: Host, version: int) -> bool:
    """Do one round, and say whether the first tenant serves a version of its file."""
    host.follower.step()
    tenant = host.router.mounts[0].tenant
    return tenant is not None and tenant.flask.get("VERSION") == version


def audited_of(host: Host) -> list[AuditedTenant]:
    """Return what a host serves, built."""
    found = []
    for mount in host.router.mounts:
        mount.ensure_instance()
        instance, tenant = mount.instance, mount.tenant
        app = instance.app() if instance is not None and instance.app is not None else None
        if tenant is not None and isinstance(app, Flask):
            found.append(AuditedTenant(tenant, app, host))
    return found


def planted(bounds: Bounds, folder: Path) -> None:
    """Audit a folder in which each kind of leak is planted."""
    sys.path.insert(0, str(folder))
    settings = settings_of(folder)
    in_files = leaks.plant_in_files(folder, settings.data_dir)
    in_code = leaks.plant_in_code(folder)
    in_settings = leaks.unsafe_settings(settings.data_dir)
    of_acme = leaks.settings_of_acme()
    for name, keys in (("acme", of_acme), ("globex", dict(in_settings.values()))):
        values = {"SECRET_KEY": secrets.token_hex(32), "BLUEPRINTS": [*in_code.values()]} | keys
        text = "".join(f"{key} = {value!r}\n" for key, value in values.items())
        (folder / f"tenants/{name}.py").write_text(text)
    counting = {one.id: one for one in audit_folder(settings)[0] if one.is_problem}
    wanted = {*in_files, *in_code, *in_settings}
    print(f"{len(wanted)} leaks planted, {len(wanted & counting.keys())} found")
    for id_, one in sorted(counting.items()):
        print(f"  {id_}  {one.place}")
        print(*(f"      {path}" for path in one.paths[:1]), sep="\n")
    bounds.check("leaks not found", len(wanted - counting.keys()), 0)
    bounds.check("findings beyond them", len(counting.keys() - wanted), 0)
    bounds.check("findings without a place", sum(not one.place for one in counting.values()), 0)


def one_key(bounds: Bounds, folder: Path) -> None:
    """Play the sessions of ten tenants with one key at one another."""
    host = create_host(settings_of(folder))
    keys = {"SECRET_KEY": secrets.token_hex(32), "BLUEPRINTS": ["landing"]}
    data_dir = host.settings.data_dir
    host.serve_only([parse_tenant(f"t{number}", keys, data_dir=data_dir) for number in range(10)])
    done = replay(audited_of(host))
    host.close()
    print(f"{done.pair_count} pairs, {len(done.accepted)} accepted, {len(done.unproven)} unproven")
    bounds.check("foreign sessions, flashes, tokens accepted", len(done.accepted), 0)
    bounds.check(
        "pairs not tried, and tenants unproven", 90 - done.pair_count + len(done.unproven), 0
    )


def many(bounds: Bounds, folder: Path) -> None:
    """Audit 200 tenants with all endpoints."""
    write(folder, 200)
    started_at = time.perf_counter()
    found = [one.id for one in audit_folder(settings_of(folder))[0] if one.is_problem]
    bounds.check("audit of 200 tenants", time.perf_counter() - started_at, 60, " s")
    bounds.check(f"findings in 200 tenants {found[:5]}", len(found), 0)


main()
