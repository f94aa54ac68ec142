"""Proves that nothing crosses between tenants, or says what does and where.

Four questions, each a room of its own: what can two apps both write (`audit_objects`,
`audit_source`); is what one tenant signed worth anything at another (`audit_replay`); what do two
tenants have in common by value (`audit_compare`); what is unsafe in each one's configuration
(`audit_settings`). It changes nothing. What one process cannot give, it cannot prove: tenants
share one memory and one interpreter, so it finds mistakes, not malice.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tenantry.audit.comparison import compare_values
from tenantry.audit.finding import Audited, Finding, judged
from tenantry.audit.objects import compare_graphs, hearing
from tenantry.audit.replay import for_replay, replay, replay_findings
from tenantry.audit.settings import check_settings
from tenantry.audit.source import scan_sources

__all__ = ["Audited", "Finding", "audit", "for_replay", "listening"]


def audit(
    audited: Sequence[Audited],
    data_dir: Path,
    *,
    trusted_hosts: Iterable[str] = (),
    before: frozenset[int] = frozenset(),
) -> list[Finding]:
    """Return every finding, those that count first; what tenants accept is marked so.

    Args:
        audited: the tenants to compare, as `for_replay` changes them, built; no request may come
            to them meanwhile.
        data_dir: where their folders and secrets are.
        trusted_hosts: the host's own setting.
        before: what `listening()` said before the first of them was built.
    """
    hosts = tuple(trusted_hosts)
    found = list(_findings(audited, data_dir, hosts, before))
    accepts = {one.name: one.tenant.audit_accept for one in audited}
    found = judged(found, accepts)
    found += _unused(audited, found)
    return sorted(found, key=lambda one: (not one.counts, one.is_note))


def listening() -> frozenset[int]:
    """Return what hears every app of this process now: ask before tenants are built."""
    return frozenset(id(one) for _, one in hearing())


def _findings(
    audited: Sequence[Audited], data_dir: Path, hosts: tuple[str, ...], before: frozenset[int]
) -> Iterator[Finding]:
    # First, for requests wake what apps make late: templates, serialisers, caches.
    yield from replay_findings(
        replay(audited, hosts), {one.name: one.tenant.file for one in audited}
    )
    graphs = compare_graphs(audited, before)
    yield from graphs.findings
    told = {one.place for one in graphs.findings}
    for one in scan_sources(graphs.world, graphs.modules):
        if one.place not in told:
            yield one
    yield from compare_values(audited, data_dir)
    yield from check_settings(audited, data_dir, hosts)


def _unused(audited: Sequence[Audited], found: Sequence[Finding]) -> Iterator[Finding]:
    """Yield a note for each acceptance of what is not found any more."""
    there = {(name, one.id) for one in found for name in one.tenants}
    for one in audited:
        for id_ in one.tenant.audit_accept:
            if (one.name, id_) not in there:
                yield Finding(
                    f"accepts-nothing:{id_}", (one.name,),
                    f"AUDIT_ACCEPT has {id_!r}, which is not found",
                    "remove it, lest it hide a new one", place=one.tenant.file, is_note=True,
                )  # fmt: skip
