"""What two tenants of an application would share: a sentence and a remedy for each kind of fact."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tenantry.adoption.fact import Fact, FactKind

Cure = Literal["process", "change"]
"""What separates the tenants: a process for each tenant, or a change of the application."""

Facts = Mapping[FactKind, Sequence[Fact]]

_OWN_FOLDER = "write below app.instance_path, which is the tenant's own folder"

_OWN_HOST = "give each tenant a host name of its own with HOSTS, where it is at /"


@dataclass(frozen=True)
class Crossing:
    """Something that does not work if the application serves two tenants."""

    kind: str
    """The heading on the page, such as `Files`."""
    text: str
    remedy: str
    cure: Cure
    place: str = ""


PATHS: tuple[FactKind, ...] = ("database", "file", "folder")


def key_of(fact: Fact, facts: Facts) -> str:
    """Return the configuration key that names a path or the nearest of its folders, or ""."""
    best = Fact("setting")
    for setting in facts.get("setting", ()):
        path = setting.detail.rstrip("/")
        if len(path) > len(best.detail) and f"{fact.detail}/".startswith(f"{path}/"):
            best = setting
    return best.subject


def _path_remedy(fact: Fact, facts: Facts, remedy: str) -> str:
    key = key_of(fact, facts)
    own = "a path in the tenant's own folder, <data>/NAME"
    return f"in each tenant file, set {key} to {own}" if key else remedy


def _file(fact: Fact, facts: Facts) -> Crossing:
    text = f"writes {fact.subject}; all tenants would write the same file"
    return Crossing("Files", text, _path_remedy(fact, facts, _OWN_FOLDER), "change", fact.place)


def _folder(fact: Fact, facts: Facts) -> Crossing:
    text = f"creates the folder {fact.subject}; all tenants would use the same folder"
    return Crossing("Files", text, _path_remedy(fact, facts, _OWN_FOLDER), "change", fact.place)


def _database(fact: Fact, facts: Facts) -> Crossing:
    remedy = (
        "open the tenant's own database, which SQLALCHEMY_DATABASE_URI names, or a file below "
        "app.instance_path"
    )
    return Crossing(
        "Databases",
        f"opens the SQLite database {fact.subject} itself; all tenants would share its rows",
        _path_remedy(fact, facts, remedy),
        "change",
        fact.place,
    )


def _store(fact: Fact, _: object) -> Crossing:
    return Crossing(
        "Servers",
        f"connects to {fact.subject} itself; all tenants would use the same keys",
        "read the URL and a key prefix from app.config, and set them in each tenant file",
        "change",
        fact.place,
    )


def _listener(fact: Fact, _: object) -> Crossing:
    return Crossing(
        "Servers",
        f"listens on {fact.subject}, which only one process can do",
        "start servers under: if __name__ == '__main__'",
        "change",
        fact.place,
    )


def _twice(fact: Fact, _: object) -> Crossing:
    return Crossing(
        "Process",
        f"builds one tenant, but not a second one in the same process: {fact.subject}",
        "keep no state in libraries or in the process, such as a registration",
        "process",
    )


def _sets(fact: Fact, _: object) -> Crossing:
    return Crossing(
        "Process",
        f"sets the environment variable {fact.subject}, which is the same for all tenants",
        "set the variable where the host starts, or keep the value in app.config",
        "process",
        fact.place,
    )


def _state(fact: Fact, _: object) -> Crossing:
    value = f" to {fact.detail}" if fact.detail else ""
    remedy = "remove the change, or make it once for the host"
    if fact.subject.startswith("the handler of"):
        remedy = "set handlers under: if __name__ == '__main__', because they belong to the host"
    elif fact.subject == "the current folder":
        remedy = "use absolute paths, such as Path(__file__).parent or app.instance_path"
    text = f"changes {fact.subject}{value}, for all tenants"
    return Crossing("Process", text, remedy, "process", fact.place)


def _thread(fact: Fact, _: object) -> Crossing:
    return Crossing(
        "Threads",
        f"starts a thread, {fact.subject}, that still runs after the app is closed; each build of "
        "a tenant in each worker starts another",
        "run the work in a program of its own, or start the thread at the first use and end it",
        "process",
        fact.place,
    )


def _fork(fact: Fact, _: object) -> Crossing:
    return Crossing(
        "Processes",
        f"starts a process with {fact.subject}, or with multiprocessing; each build of a tenant in "
        "each worker starts another",
        "run the work in a program of its own",
        "process",
        fact.place,
    )


def _link(fact: Fact, _: object) -> Crossing:
    return Crossing(
        "Links",
        f"the page {fact.detail} has a link without the URL prefix: {fact.subject}",
        f"write the link with url_for, or {_OWN_HOST}",
        "change",
    )


def _redirect(fact: Fact, _: object) -> Crossing:
    return Crossing(
        "Links",
        f"the page {fact.detail} redirects to {fact.subject}, without the URL prefix",
        f"write redirect(url_for(…)), or {_OWN_HOST}",
        "change",
    )


DESCRIPTIONS: Mapping[FactKind, Callable[[Fact, Facts], Crossing]] = {
    "database": _database,
    "file": _file,
    "folder": _folder,
    "store": _store,
    "listener": _listener,
    "link": _link,
    "redirect": _redirect,
    "sets": _sets,
    "state": _state,
    "thread": _thread,
    "twice": _twice,
    "fork": _fork,
}
"""Describes each kind of fact that prevents an application from being a tenant."""
