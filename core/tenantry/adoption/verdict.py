"""Judges the facts about an application: what two tenants would share, and what helps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tenantry.adoption.crossing import DESCRIPTIONS, PATHS, Crossing, Cure, Facts, key_of
from tenantry.adoption.fact import Fact, FactKind

Fit = Literal["yes", "process", "no"]

_PROCESS = frozenset({"shared", "reaches", "process", "library"})
"""The first parts of IDs of audit findings about objects, which processes do not share."""

_OF_THE_HOST = frozenset({"readable-secret"})
"""The first parts of IDs of audit findings that are not about the application."""

_SAME_FOR_ALL = ("process:sqlite3.register_adapter", "process:sqlite3.register_converter")
"""IDs of audit findings about calls that have the same effect for all tenants of an application."""

_KEY_IDS = frozenset({"shared-cookie-name", "shared-database", "shared-folder", "shared-store"})
"""The first parts of IDs of audit findings that can name a configuration key after the colon."""

_CALLS = {"the current folder": "os.chdir", "the file mode mask (umask)": "os.umask"}
"""Maps parts of the process's state to the calls that the audit finds in source code."""

_PREVENTED = ("Read-only file system", "unable to open database file")
"""The messages of errors with which `watch` prevents a change."""


@dataclass(frozen=True)
class Verdict:
    """Whether an application can be a tenant, and why not."""

    application: str
    failure: str = ""
    """Why the application cannot be built, or ""."""
    findings: Sequence[Crossing] = ()
    notes: Sequence[str] = ()
    """What an operator should know. Notes do not change the verdict."""

    @property
    def fit(self) -> Fit:
        """Whether the application can be a tenant; `process` means in a process of its own."""
        if self.failure or any(one.cure == "change" for one in self.findings):
            return "no"
        return "process" if self.findings else "yes"

    @property
    def summary(self) -> str:
        """The verdict in one sentence."""
        if self.failure:
            return f"{self.application} cannot be a tenant: {self.failure}."
        if self.fit == "yes":
            return f"{self.application} can be a tenant as it is."
        if self.fit == "process":
            return (
                f"{self.application} can be a tenant only with ISOLATION = 'process', which comes "
                "with a later version of Tenantry, or with the changes below."
            )
        return f"{self.application} cannot be a tenant as it is. It needs the changes below."


def judge(application: str, facts: Sequence[Fact], failure: str = "") -> Verdict:
    """Return the verdict on an application.

    Args:
        application: the value of `APP`.
        facts: what the child processes have observed.
        failure: why the application cannot be built, or "".
    """
    by_kind: dict[FactKind, list[Fact]] = {}
    for fact in facts:
        by_kind.setdefault(fact.kind, []).append(fact)
    return Verdict(
        application,
        _explained(failure.rstrip("."), by_kind),
        (*dict.fromkeys(_crossings(by_kind)),),
        (*dict.fromkeys(_notes(by_kind, failure)),),
    )


def _explained(failure: str, facts: Facts) -> str:
    """Return a failure with its cause, if the facts name one."""
    missing = sorted({one.subject for one in facts.get("lacks", ()) if one.subject in failure})
    if missing:
        return (
            f"it needs {_variables(missing)}. Set {'it' if len(missing) == 1 else 'them'} where "
            f"you run this command and where the host starts. The error is: {failure}"
        )
    if any(text in failure for text in _PREVENTED):
        return (
            "while it is built, it changes a file outside of the tenant's folder, which this "
            f"command prevents. The error is: {failure}"
        )
    return failure


def _crossings(facts: Facts) -> Iterator[Crossing]:
    own = [
        describe(fact, facts)
        for kind, describe in DESCRIPTIONS.items()
        for fact in facts.get(kind, ())
    ]
    yield from own
    places = {crossing.place for crossing in own} - {""}
    known = {_CALLS.get(fact.subject) for fact in facts.get("state", ())}
    known |= {key_of(fact, facts) or None for kind in PATHS for fact in facts.get(kind, ())}
    for fact in facts.get("audit", ()):
        kind, _, subject = fact.subject.partition(":")
        is_repeated = fact.place in places or subject in known
        if not (is_repeated or kind in _OF_THE_HOST or fact.subject in _SAME_FOR_ALL):
            is_key = kind in _KEY_IDS and subject.isupper()
            remedy = f"in each tenant file, set {subject}: " if is_key else ""
            cure: Cure = "process" if kind in _PROCESS else "change"
            yield Crossing("Audit", fact.detail, remedy + fact.remedy, cure, fact.place)


def _notes(facts: Facts, failure: str) -> Iterator[str]:
    for fact in facts.get("answer", ()):
        if any(text in fact.detail for text in _PREVENTED):
            continue  # a finding names the file
        yield (
            f"the page {fact.subject} answers 500: {fact.detail}. If the app needs a set-up "
            "command, such as init-db, run it in the tenant: tenantry run NAME -- init-db"
        )
    for fact in facts.get("audit", ()):
        if fact.subject in _SAME_FOR_ALL:
            yield f"{fact.detail}, with the same effect for each tenant of this application"
    for fact in facts.get("connection", ()):
        yield (
            f"connects to {fact.subject}{_at(fact)}. Give each tenant its own database or key "
            "prefix there"
        )
    for fact in facts.get("program", ()):
        yield f"starts the program {fact.subject}{_at(fact)}"
    for kind, text in _VARIABLE_NOTES.items():
        found = {fact.subject for fact in facts.get(kind, ())}
        names = sorted(name for name in found if name not in failure)
        if names:
            yield text.format(_variables(names))


_VARIABLE_NOTES: Mapping[FactKind, str] = {
    "reads": "reads {}, with the same value for all tenants",
    "lacks": "looks for {}, which this environment does not have",
}


def _variables(names: Sequence[str]) -> str:
    """Return `the environment variable X`, or `the environment variables X, Y`."""
    return f"the environment variable{'s' * (len(names) > 1)} {', '.join(names)}"


def _at(fact: Fact) -> str:
    return f" ({fact.place})" if fact.place else ""
