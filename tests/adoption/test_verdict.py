"""The verdict on an application follows from the facts, and names a remedy for each finding."""

import pytest

from tenantry.adoption.fact import Fact, FactKind
from tenantry.adoption.verdict import judge


def test_an_application_without_facts_fits() -> None:
    """An application about which nothing is found can be a tenant as it is."""
    verdict = judge("shop:app", [])

    assert ("yes", "shop:app can be a tenant as it is.") == (verdict.fit, verdict.summary)


@pytest.mark.parametrize(
    ("fact", "fit"),
    [
        (Fact("state", "the current folder", "/srv"), "process"),
        (Fact("sets", "TZ"), "process"),
        (Fact("thread", "shop.work"), "process"),
        (Fact("twice", "ValueError: registered"), "process"),
        (Fact("audit", "shared:json.CACHE", "json.CACHE is shared"), "process"),
        (Fact("file", "app.log", "/srv/app.log"), "no"),
        (Fact("folder", "uploads", "/srv/uploads"), "no"),
        (Fact("database", "shop.db", "/srv/shop.db"), "no"),
        (Fact("store", "127.0.0.1:6379"), "no"),
        (Fact("listener", "0.0.0.0:8000"), "no"),
        (Fact("link", "<a> /cart", "/"), "no"),
        (Fact("redirect", "/cart", "/"), "no"),
        (Fact("audit", "replay:session", "a session crosses"), "no"),
        (Fact("answer", "/", "ValueError: no"), "yes"),
        (Fact("connection", "db.example:5432"), "yes"),
        (Fact("program", "git"), "yes"),
        (Fact("reads", "SHOP_KEY"), "yes"),
        (Fact("lacks", "SHOP_KEY"), "yes"),
        (Fact("audit", "readable-secret:X", "others can read X"), "yes"),
        (Fact("audit", "process:sqlite3.register_converter", "registers"), "yes"),
    ],
)
def test_processes_separate_what_belongs_to_a_process(fact: Fact, fit: str) -> None:
    """A process of its own helps against shared memory, but not against shared files and URLs."""
    assert fit == judge("shop:app", [fact]).fit


@pytest.mark.parametrize("kind", ["file", "folder", "database"])
def test_the_remedy_for_a_path_names_the_nearest_key(kind: FactKind) -> None:
    """If a configuration key names a path or its folder, the remedy is to set that key."""
    facts = [
        Fact("setting", "ROOT", "/srv"),
        Fact("setting", "UPLOAD_FOLDER", "/srv/uploads"),
        Fact("setting", "OTHER", "/srv/uploads2"),
        Fact(kind, "uploads/cat.png", "/srv/uploads/cat.png"),
    ]

    finding = judge("shop:app", facts).findings[0]

    expected = "in each tenant file, set UPLOAD_FOLDER to a path in the tenant's own folder"
    assert f"{expected}, <data>/NAME" == finding.remedy


@pytest.mark.parametrize(
    ("fact", "repeated"),
    [
        (
            Fact("sets", "TZ", place="shop.py:3"),
            Fact("audit", "process:os.environ", "", "shop.py:3"),
        ),
        (Fact("state", "the current folder"), Fact("audit", "process:os.chdir")),
    ],
)
def test_a_finding_appears_once(fact: Fact, repeated: Fact) -> None:
    """A finding of the audit that repeats a fact is left out."""
    assert 1 == len(judge("shop:app", [fact, repeated]).findings)


def test_a_failure_names_the_missing_variable() -> None:
    """If a build fails because of an environment variable, the verdict says what to set."""
    verdict = judge("shop:app", [Fact("lacks", "SHOP_KEY")], "KeyError: 'SHOP_KEY'.")

    assert "it needs the environment variable SHOP_KEY. Set it where" in verdict.summary
    assert ("no", ()) == (verdict.fit, verdict.notes)


def test_a_failure_because_of_a_prevented_change_says_so() -> None:
    """If a build fails because it may not change a file, the verdict explains the error."""
    verdict = judge("shop:app", [], "OSError: [Errno 30] Read-only file system: '/srv/app.log'")

    assert "a file outside of the tenant's folder, which this command prevents" in verdict.summary


def test_an_answer_because_of_a_prevented_change_is_no_note() -> None:
    """If the start page fails because it may not change a file, only the finding says so."""
    facts = [
        Fact("database", "shop.db", "/srv/shop.db"),
        Fact("answer", "/", "OperationalError: unable to open database file"),
    ]

    assert () == judge("shop:app", facts).notes
