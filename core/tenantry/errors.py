"""What can go wrong, as a tree.

TenantryError            something that an operator or a developer can mend
├── TenantFileError      a tenant file is refused; holds every Problem of it
│   └── HungFileError    it did not finish in time
├── EndpointError        an endpoint does not exist, or fails to import or register
└── UnknownTenantError   a command names a tenant that is not there
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one tenant file; its text is one line."""

    file: str
    """Path of the file as the operator would type it."""
    text: str
    """What was found and what to do; never a secret."""
    key: str | None = None
    """The key, as it stands in the file: `BLUEPRINTS[1]`."""
    line: int | None = None

    def __str__(self) -> str:
        """Return `tenants/acme.py:3: 'KEY': what was found; what to do.`."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        key = "" if self.key is None else f"'{self.key}': "
        return f"{place}: {key}{self.text}"


class TenantryError(Exception):
    """Something that an operator or a developer can mend. Its text names it and the remedy."""


class TenantFileError(TenantryError):
    """A tenant file is refused. `problems` holds every reason, in the order of the file's keys."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        """Return a line per problem."""
        return "\n".join(str(problem) for problem in self.problems)


class HungFileError(TenantFileError):
    """A tenant file did not finish in the loader's time."""


class EndpointError(TenantryError):
    """An endpoint does not exist, has not the form of one, or fails to import or register.

    `name` is the endpoint as it stands in `BLUEPRINTS`.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        super().__init__(text)


class UnknownTenantError(TenantryError):
    """A command names a tenant that has no file."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(name, self.known)

    def __str__(self) -> str:
        """Return the name and the ones that there are."""
        there = ", ".join(self.known) or "none"
        return f"no tenant named {self.name!r}; tenants: {there}."
