"""What the child processes observe. They report facts, and the module `verdict` judges them."""

import json
import os
import threading
from dataclasses import asdict, dataclass
from typing import Literal

FactKind = Literal[
    "phase", "failed", "file", "database", "folder", "setting", "connection", "store", "listener",
    "program", "reads", "lacks", "sets", "state", "thread", "link", "redirect", "answer", "audit",
    "twice", "fork", "done",
]  # fmt: skip

MAX_CHARS = 1000
"""Maximum length of a text, because a page shows one line for each fact."""

MAX_FACTS = 500
"""Maximum number of facts of one kind, so that a loop does not fill the memory."""


@dataclass(frozen=True)
class Fact:
    """One observation of an application."""

    kind: FactKind
    subject: str = ""
    detail: str = ""
    place: str = ""
    """The file and the line of the application's code, or "" if unknown."""
    remedy: str = ""
    """What the audit suggests; "" for all other facts."""


class FactWriter:
    """Writes each fact once, as a line of JSON. Thread-safe, because an app can start threads.

    Args:
        fd: an open file descriptor.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()  # protects `_known`, and keeps lines in one piece
        self._known: dict[str, set[tuple[str, str]]] = {}

    def silence(self) -> None:
        """Write no more facts, because this process is a copy that the application has forked."""
        self._fd = -1

    def write(self, fact: Fact) -> None:
        """Write a fact unless the same fact has been written, or too many of its kind."""
        key = (fact.subject, fact.detail)
        if self._fd < 0:
            return
        with self._lock:
            known = self._known.setdefault(fact.kind, set())
            if key in known or len(known) >= MAX_FACTS:
                return
            known.add(key)
            texts = {name: str(text)[:MAX_CHARS] for name, text in asdict(fact).items()}
            os.write(self._fd, json.dumps(texts).encode() + b"\n")


def read_fact(line: bytes) -> Fact:
    """Return the fact in a line.

    Raises:
        ValueError: the line contains no fact.
    """
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("not a fact")  # noqa: TRY004 - for the caller, any other line is invalid
    try:
        return Fact(**values)
    except TypeError as error:
        raise ValueError("not a fact") from error
