"""The exceptions of Tenantry, as a tree of classes.

TenantryError                  something that an operator or a developer can fix
├── TenantFileError            a tenant file is rejected; holds every Problem
│   └── TenantFileTimeoutError a tenant file did not finish in time
├── ApplicationError           the `APP` of a tenant is missing, or gives no Flask app
├── EndpointError              an endpoint is missing or invalid, or fails to import or register
└── UnknownTenantError         a command names a tenant that has no file
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


def one_line(error: BaseException, *, with_type: bool = False) -> str:
    """Return the message of an exception on one line. The message may contain secrets.

    Args:
        error: the exception, whose `__str__` method may raise any exception.
        with_type: whether to put the exception's type first, as in `ValueError: no`. An exception
            without a message always becomes the name of its type.
    """
    name = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except BaseException:  # noqa: BLE001 - `__str__` can raise any exception
        text = ""
    return f"{name}: {text}" if text and with_type else text or name


@dataclass(frozen=True)
class Problem:
    """One mistake in one tenant file, described in one line."""

    file: str
    """The path of the tenant file, as an operator would type it."""
    text: str
    """What is wrong and how to fix it, without secrets."""
    key: str | None = None
    """The key with the mistake, as written in the tenant file: `BLUEPRINTS[1]`."""
    line: int | None = None

    def __str__(self) -> str:
        """Return `tenants/acme.py:3: 'KEY': what was found; what to do.`."""
        location = self.file if self.line is None else f"{self.file}:{self.line}"
        key = "" if self.key is None else f"'{self.key}': "
        return f"{location}: {key}{self.text}"


class TenantryError(Exception):
    """An error whose message tells an operator or a developer how to fix the problem."""


class TenantFileError(TenantryError):
    """A tenant file is rejected. `problems` holds every reason, in the order of the file's keys."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        """Return one line for each problem."""
        return "\n".join(str(problem) for problem in self.problems)


class TenantFileTimeoutError(TenantFileError):
    """The code of a tenant file did not finish within the time limit."""


class ApplicationError(TenantryError):
    """The value of `APP` names no module, or no Flask app, or the app cannot be built."""


class EndpointError(TenantryError):
    """An endpoint does not exist, is not a valid endpoint package, or fails to import or register.

    `name` is the endpoint's name as written in `BLUEPRINTS`.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        super().__init__(text)


class UnknownTenantError(TenantryError):
    """A command names a tenant that has no file."""

    def __init__(self, name: str, existing: Iterable[str]) -> None:
        self.name = name
        self.existing = tuple(existing)
        super().__init__(name, self.existing)

    def __str__(self) -> str:
        """Return the unknown name, the most similar names, and the number of tenants."""
        if not self.existing:
            return f"no tenant named {self.name!r}; create one with: tenantry new {self.name}."
        near = [repr(name) for name in difflib.get_close_matches(self.name, self.existing)]
        question = f"did you mean {' or '.join(near)}? " if near else ""
        count = len(self.existing)
        number = f"{count:,} tenants exist" if count > 1 else "1 tenant exists"
        return f"no tenant named {self.name!r}; {question}{number}; see: tenantry list."
