"""Measures the findings and the duration of `tenantry audit`.

    python tests/bench/audit.py [samples] [fifty] [reloads] [leaks] [replay] [many]

The benchmark prints each figure beside its bound, and exits with 1 if a figure misses its bound.
All parts together take some minutes.
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
import redis_server
from tenantry.audit.finding import AuditedTenant, Finding
from tenantry.audit.libraries import LibraryObjects
from tenantry.audit.process_snapshot import CodeOwners
from tenantry.audit.replay import replay
from tenantry.audit.run import audit
from tenantry.audit.written_files import WrittenFiles
from tenantry.cli.audit import audit_folder
from tenantry.endpoints.finding import available_endpoints
from tenantry.host import Host, create_host
from tenantry.settings import HostSettings
from tenantry.tenants.validation import parse_tenant

ROOT = Path(__file__).parents[2]
RELOADS = 100


def main() -> None:
    """Run the parts that the command line names, or all parts by default."""
    parts = {
        "samples": samples, "fifty": fifty, "reloads": reloads, "leaks": planted,
        "replay": one_key, "many": many,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description="What the audit finds, and how long it takes.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; or all")
    chosen = parser.parse_args().parts or [*parts]
    bounds = Bounds()
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            (Path(folder) / "tenants").mkdir()
            (Path(folder) / "own").mkdir()
            parts[name](bounds, Path(folder))
    bounds.end()


def settings_of(folder: Path) -> HostSettings:
    """Return the settings of a host whose folders are in `folder`.

    Endpoints are found on `sys.path` and not in `APP_DIR`, so tenants share modules beside them.
    """
    return HostSettings(
        tenants_dir=folder / "tenants",
        data_dir=folder / "instance",
        app_dir=str(folder / "own"),
        log_level="error",
    )


def write(folder: Path, count: int) -> None:
    """Write tenant files. Each tenant has all endpoints and one client."""
    for number in range(count):
        text = f"SECRET_KEY = {secrets.token_hex(32)!r}\nBLUEPRINTS = {available_endpoints()!r}\n"
        text += f"CLIENTS = {{'web': 'sha256:{secrets.token_hex(32)}'}}\n"
        (folder / f"tenants/t{number}.py").write_text(text)


def problems(findings: list[Finding]) -> dict[str, Finding]:
    """Return the findings that make an audit fail, by ID."""
    return {finding.id: finding for finding in findings if finding.is_problem}


def samples(bounds: Bounds, folder: Path) -> None:
    """Check that an audit of the sample tenants finds no problems."""
    settings = settings_of(folder).model_copy(update={"tenants_dir": ROOT / "tenants"})
    found = problems(audit_folder(settings)[0])
    bounds.check(f"findings in the samples {[*found]}", len(found), 0)


def fifty(bounds: Bounds, folder: Path) -> None:
    """Check that an audit of 50 tenants with all endpoints finds no problems."""
    write(folder, 50)
    found = problems(audit_folder(settings_of(folder))[0])
    bounds.check(f"findings in 50 tenants {[*found]}", len(found), 0)


def reloads(bounds: Bounds, folder: Path) -> None:
    """Check that an audit finds no problems after one tenant was reloaded many times."""
    write(folder, 3)
    host = create_host(settings_of(folder))
    libraries = LibraryObjects(CodeOwners(()))
    host.load()
    with libraries.recording():
        for mount in host.router.mounts:
            mount.ensure_instance()
    path = folder / "tenants/t0.py"
    text = path.read_text()
    for number in range(RELOADS):
        path.write_text(f"{text}VERSION = {number}\n")
        wait_until(partial(serves, host, number), every_s=0.05)
    audited = audited_of(host)
    assert audited[0].app.config["VERSION"] == RELOADS - 1
    found = problems(audit(audited, host.settings.data_dir, libraries, WrittenFiles()))
    host.close()
    bounds.check(f"findings after {RELOADS} reloads {[*found]}", len(found), 0)


def serves(host: Host, version: int) -> bool:
    """Let the host reload. Return whether the first tenant serves the given version of its file."""
    host.follower.step()
    tenant = host.router.mounts[0].tenant
    return tenant is not None and tenant.flask.get("VERSION") == version


def audited_of(host: Host) -> list[AuditedTenant]:
    """Build the host's tenants for an audit."""
    found = []
    for mount in host.router.mounts:
        mount.ensure_instance()
        instance, tenant = mount.instance, mount.tenant
        app = instance.app() if instance is not None and instance.app is not None else None
        if tenant is not None and isinstance(app, Flask):
            found.append(AuditedTenant(tenant, app, host))
    return found


def planted(bounds: Bounds, folder: Path) -> None:
    """Check that the audit finds every kind of planted leak."""
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
    with redis_server.running() as redis:
        plant_crossings(folder, redis.url)
        found = problems(audit_folder(settings)[0])
    crossings = set[str]().union(*(ids for ids, _ in leaks.CROSSING.values()))
    expected = {*in_files, *in_code, *in_settings, *crossings}
    print(f"{len(expected)} leaks planted, {len(expected & found.keys())} found")
    for id_, finding in sorted(found.items()):
        print(f"  {id_}  {finding.place}")
        print(*(f"      {path}" for path in finding.paths[:1]), sep="\n")
    bounds.check("leaks not found", len(expected - found.keys()), 0)
    bounds.check("other findings", len(found.keys() - expected), 0)
    without_place = [finding for finding in found.values() if not finding.place]
    bounds.check("findings without a place", len(without_place), 0)


def plant_crossings(folder: Path, redis_url: str) -> None:
    """Write two tenants that share sessions, a cache, rate limits, a log file and uploads."""
    endpoints = [*leaks.plant_crossings(folder)]
    keys = leaks.keys_of_crossings(redis_url) | {"BLUEPRINTS": endpoints}
    for name in ("initech", "umbrella"):
        values = {"SECRET_KEY": secrets.token_hex(32)} | keys
        text = "".join(f"{key} = {value!r}\n" for key, value in values.items())
        (folder / f"tenants/{name}.py").write_text(text)


def one_key(bounds: Bounds, folder: Path) -> None:
    """Replay the sessions of ten tenants that have the same secret key."""
    host = create_host(settings_of(folder))
    keys = {"SECRET_KEY": secrets.token_hex(32), "BLUEPRINTS": ["landing"]}
    data_dir = host.settings.data_dir
    host.serve_only([parse_tenant(f"t{number}", keys, data_dir=data_dir) for number in range(10)])
    result = replay(audited_of(host))
    host.close()
    bounds.check("foreign sessions, flashes, tokens accepted", len(result.accepted), 0)
    bounds.check("pairs not tried", 90 - result.pair_count, 0)
    bounds.check("tenants unproven", len(result.unproven), 0)


def many(bounds: Bounds, folder: Path) -> None:
    """Measure how long an audit of 200 tenants with all endpoints takes."""
    write(folder, 200)
    started_at = time.perf_counter()
    found = problems(audit_folder(settings_of(folder))[0])
    bounds.check("audit of 200 tenants", time.perf_counter() - started_at, 60, " s")
    bounds.check(f"findings in 200 tenants {[*found][:5]}", len(found), 0)


main()
