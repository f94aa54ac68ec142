"""Describes problems with the keys of a tenant file. No message shows a secret."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from flask import Flask

from tenantry.errors import Problem
from tenantry.observability.redaction import SECRET_KEYS, redact_value
from tenantry.planned import PLANNED, PLANNED_KEYS

_FLASK_KEYS = frozenset(Flask.default_config)

_NEVER_SHOWN = frozenset({*SECRET_KEYS, "DATABASE_URI", "OIDC"})
"""Keys whose values are never shown, because even an invalid URL can contain a password."""

_SHOWN_CHARS = 60
"""Maximum number of characters of a value in a message, so that the message fits on one line."""

_EXPECTED: Mapping[str, str] = {
    "bool_type": "True or False",
    "dict_type": "a dict",
    "float_type": "a number",
    "greater_than": "more than {gt:g}",
    "finite_number": "a finite number",
    "greater_than_equal": "at least {ge}",
    "int_type": "an integer",
    "literal_error": "{expected}",
    "string_too_long": "at most {max_length} characters",
    "string_type": "a string",
    "string_unicode": "text",
    "tuple_type": "a list",
}
"""What a key expects, for each type of error that pydantic reports."""

T = TypeVar("T")


class ValueProblems(ValueError):  # noqa: N818 - the plural is correct: one error has several problems
    """Problems inside one value, as pairs of a place (`['mobile']['expires']`) and a message."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)


class ProblemCollector:
    """Collects the problems inside one value, so that one error reports all of them."""

    def __init__(self) -> None:
        self._problems: list[tuple[str, str]] = []

    def add(self, place: str, text: str) -> None:
        """Add a problem at a place inside the value, such as `['mobile']`."""
        self._problems.append((place, text))

    def parse(self, place: str, parse: Callable[[Any], T], value: Any) -> T | None:
        """Return `parse(value)`, or add a problem and return None on a `ValueError`."""
        try:
            return parse(value)
        except ValueProblems as error:
            self._problems += [(place + inner, text) for inner, text in error.problems]
        except ValueError as error:
            self._problems.append((place, str(error)))
        return None

    def parse_item(self, entry: Mapping[Any, Any], key: str, parse: Callable[[Any], T]) -> T | None:
        """Return a parsed item of a dict, or None if the item is missing or invalid."""
        value = entry.get(key)
        return None if value is None else self.parse(f"[{key!r}]", parse, value)

    def reject_unknown(self, entry: Mapping[Any, Any], known: Sequence[str]) -> None:
        """Add a problem for each unknown key of a dict."""
        for key in entry:
            if key not in known:
                self.add(f"[{key!r}]", f"unknown key; {suggestion(key, known)}")

    def raise_if_any(self) -> None:
        """Raise a `ValueProblems` error if a problem was added."""
        if self._problems:
            raise ValueProblems(self._problems)


def suggestion(name: object, known: Sequence[str]) -> str:
    """Return a hint for an unknown name: the most similar known name, or all known names."""
    if isinstance(name, str):
        near = [candidate for candidate in known if candidate.lower() == name.lower()]
        near += [candidate for candidate in known if is_one_edit_away(candidate, name)]
        if near:
            return f"did you mean {near[0]!r}?"
    return f"expected one of: {', '.join(known)}" if known else "remove it"


def unknown_keys(file: str, keys: Iterable[str], known: Iterable[str]) -> Iterator[Problem]:
    """Yield a problem for each planned key, and for each key that is one edit from a known key.

    Any other unknown key is a setting of Flask or of an extension.
    """
    known = [*known, *PLANNED_KEYS]
    for key in keys:
        if key in PLANNED_KEYS:
            yield Problem(file, PLANNED, key)
        elif key not in known and key not in _FLASK_KEYS:
            near = next((name for name in known if is_one_edit_away(key, name)), None)
            if near:
                yield Problem(file, f"unknown key; did you mean '{near}'? Rename it.", key)


def unsafe_keys(name: str, file: str, values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each key that would show an app's code and secrets to clients."""
    for key in ("DEBUG", "TESTING"):
        if values.get(key):
            text = (
                "shows the code and its secrets to clients; remove it. For development: "
                f"tenantry run {name} -- run --debug"
            )
            yield Problem(file, text, key)


def invalid_value(
    file: str,
    values: Mapping[str, Any],
    error: Mapping[str, Any],
    examples: Mapping[str, list[Any] | None],
    secrets: Sequence[str],
) -> Iterator[Problem]:
    """Yield the problems of one invalid value, which can have problems in several places.

    Args:
        file: the path of the tenant file, for messages.
        values: the tenant file's keys and values.
        error: an item of pydantic's `ValidationError.errors()`.
        examples: examples of valid values for each key.
        secrets: texts that no message may show.
    """
    key, *path = error["loc"]
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, ValueProblems):
        for place, text in cause.problems:
            yield Problem(file, text if text.endswith("?") else f"{text}.", key + place)
        return
    remedy = _remedy(key, examples[key])
    if error["type"] == "missing":
        also = ", and so is 'APP'" if key == "BLUEPRINTS" else ""
        yield Problem(file, f"is missing{also}; {remedy}", key)
        return
    place = key + "".join(f"[{part!r}]" for part in path if part != "[key]")
    value = error["input"] if path else values.get(key)
    shown = "" if key in _NEVER_SHOWN else _shorten(repr(redact_value("", value, secrets)))
    if error["type"] == "value_error":
        found = f"found {shown}; " if shown else ""
        yield Problem(file, f"{found}{cause}.", place)
        return
    kind = "None" if value is None else f"{type(value).__name__} {shown}".rstrip()
    expected = _EXPECTED.get(error["type"])
    text = expected.format(**error.get("ctx", {})) if expected else error["msg"]
    yield Problem(file, f"found {kind}; expected {text}; {remedy}", place)


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _remedy(key: str, examples: list[Any] | None) -> str:
    if key == "SECRET_KEY":
        return 'write: from tenantry import secret, then: SECRET_KEY = secret("…").'
    if key == "BLUEPRINTS":
        return "write BLUEPRINTS = ['landing'], or for an existing application: APP = 'shop:app'."
    return f"write {key} = {examples[0]!r}." if examples else f"see '{key}' in tenants/README.md."


def is_one_edit_away(name: str, other: str) -> bool:
    """Whether two names differ by one insertion, deletion, replacement or swap of neighbors."""
    if name == other or abs(len(name) - len(other)) > 1:
        return False
    pairs = enumerate(zip(name, other, strict=False))
    start = next((place for place, (a, b) in pairs if a != b), None)
    if start is None:
        return True
    rest, other_rest = name[start:], other[start:]
    return (
        rest[1:] == other_rest[1:]
        or rest[1:] == other_rest
        or rest == other_rest[1:]
        or (rest[:2] == other_rest[1::-1] and rest[2:] == other_rest[2:])
    )
