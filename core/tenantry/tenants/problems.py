"""What is wrong with the keys of a tenant file, in an operator's words. Shows no secret."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from flask import Flask

from tenantry.errors import Problem
from tenantry.planned import PLANNED, PLANNED_KEYS

_FLASK_KEYS = frozenset(Flask.default_config)

_SECRET_FIELDS = frozenset(
    {"SECRET_KEY", "SECRET_KEY_FALLBACKS", "DATABASE_URI", "CLIENTS", "OIDC"}
)
"""Their values are never repeated."""

_EXPECTED: Mapping[str, str] = {
    "bool_type": "True or False",
    "dict_type": "a dict",
    "float_type": "a number",
    "greater_than": "more than {gt:g}",
    "finite_number": "a finite number",
    "greater_than_equal": "at least {ge}",
    "int_type": "an integer",
    "string_too_long": "at most {max_length} characters",
    "string_type": "a string",
    "string_unicode": "text",
    "tuple_type": "a list",
}
"""What pydantic's kinds of errors expect, in a tenant file's words."""


T = TypeVar("T")


class InnerProblems(ValueError):  # noqa: N818 - several at once
    """What is wrong inside one value: places (`['mobile']['expires']`) and texts."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)


class Found:
    """Collects what is wrong inside one value."""

    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []

    def take(self, place: str, parse: Callable[..., T], *arguments: Any) -> T | None:
        """Return what `parse` does; None, and the problem kept, where it raises."""
        try:
            return parse(*arguments)
        except InnerProblems as error:
            self.problems += [(place + inner, text) for inner, text in error.problems]
        except ValueError as error:
            self.problems.append((place, str(error)))
        return None

    def take_item(self, entry: Mapping[Any, Any], key: str, parse: Callable[..., T]) -> T | None:
        """Return the parsed item of a dict; None where it is not there, None or bad."""
        value = entry.get(key)
        return None if value is None else self.take(f"[{key!r}]", parse, value)

    def take_unknown(self, entry: Mapping[Any, Any], known: Sequence[str]) -> None:
        """Keep a problem for each key that means nothing."""
        for key in entry:
            if key not in known:
                self.problems.append((f"[{key!r}]", f"is no key; {nearest(key, known)}"))

    def end(self) -> None:
        """Raise what was found, if anything was."""
        if self.problems:
            raise InnerProblems(self.problems)


def nearest(found: object, known: Iterable[str]) -> str:
    """Return the one that was meant, or all that there are."""
    listed = list(known)
    if isinstance(found, str):
        near = [one for one in listed if one.lower() == found.lower()]
        near += [one for one in listed if is_one_edit_away(one, found)]
        if near:
            return f"did you mean {near[0]!r}?"
    return f"there are: {', '.join(listed)}"


def problems_of(
    file: str,
    values: Mapping[str, Any],
    details: Mapping[str, Any],
    examples: Mapping[str, list[Any] | None],
) -> list[Problem]:
    """Return one of pydantic's errors as problems: one, or those inside a value."""
    error = details.get("ctx", {}).get("error")
    if isinstance(error, InnerProblems):
        key = details["loc"][0]
        texts = [(place, text if text[-1] == "?" else f"{text}.") for place, text in error.problems]
        return [Problem(file, text, key + place) for place, text in texts]
    return [ill_valued(file, values, details, examples)]


def ill_valued(
    file: str,
    values: Mapping[str, Any],
    details: Mapping[str, Any],
    examples: Mapping[str, list[Any] | None],
) -> Problem:
    """Return one of pydantic's errors as a problem.

    Args:
        file: the path that messages name.
        values: what the file says.
        details: one of `ValidationError.errors()`.
        examples: key → good values.
    """
    key, *inner = details["loc"]
    place = key + "".join(f"[{part!r}]" for part in inner if part != "[key]")
    remedy = _remedy(key, examples[key])
    if details["type"] == "missing":
        return Problem(file, f"is missing; {remedy}", key)
    if details["type"] == "value_error":
        reason = str(details["ctx"]["error"])
        shown = "" if key in _SECRET_FIELDS else f"found {_short(details['input'])}; "
        return Problem(file, f"{shown}{reason}.", place)
    value = details["input"] if inner else values.get(key)
    found = "None" if value is None else type(value).__name__
    if value is not None and key not in _SECRET_FIELDS:
        found += f" {_short(value)}"
    expected = _EXPECTED.get(details["type"])
    text = expected.format(**details.get("ctx", {})) if expected else details["msg"]
    return Problem(file, f"found {found}; expected {text}; {remedy}", place)


def unknown_keys(file: str, keys: Iterable[str], known: Iterable[str]) -> Iterator[Problem]:
    """Yield a problem for each key of a later version, or one edit away from a known key.

    Every other unknown key is for Flask or an extension.
    """
    names = [*known, *PLANNED_KEYS]
    for key in keys:
        if key in PLANNED_KEYS:
            yield Problem(file, PLANNED, key)
        elif key not in _FLASK_KEYS:
            near = next((name for name in names if is_one_edit_away(key, name)), None)
            if near:
                yield Problem(file, f"unknown key; did you mean '{near}'? Rename it.", key)


def unsafe(name: str, file: str, values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each key that shows the inside of an app to its clients."""
    for key in ("DEBUG", "TESTING"):
        if values.get(key):
            yield Problem(
                file,
                "shows the code and its secrets to clients; remove it. For development: "
                f"tenantry run {name} -- run --debug",
                key,
            )


def is_one_edit_away(one: str, other: str) -> bool:
    """Whether one insertion, deletion, replacement or swap of neighbours leads to the other."""
    if one == other or abs(len(one) - len(other)) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if start is None:
        return True
    rest, rest_other = one[start:], other[start:]
    return (
        rest[1:] == rest_other[1:]
        or rest[1:] == rest_other
        or rest == rest_other[1:]
        or (rest[:2] == rest_other[1::-1] and rest[2:] == rest_other[2:])
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"  # noqa: PLR2004 - one line stays readable


def _remedy(key: str, examples: list[Any] | None) -> str:
    if key == "SECRET_KEY":
        return 'write SECRET_KEY = secret("…"), after: from tenantry import secret.'
    return f"write {key} = {examples[0]!r}." if examples else f"see '{key}' in the README."
