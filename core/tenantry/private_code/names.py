"""The names of private modules: the plain name, with `@OWNER` after its first part.

`shop.models` of the tenant acme is `shop@acme.models`. A private name is the same in every process
and after every build, because the name leaves the process in pickles, task names, cache keys and
loggers. The owner of a module that all tenants share is a hash of its folder:
`shop@0c2f5f1a9.models`.
"""

import sys
from hashlib import blake2b

_SHARED = "0"
"""First character of the owner of shared modules. The name of a tenant begins with a letter."""


def private_name(plain: str, owner: str) -> str:
    """Return the private name of a module."""
    first, dot, rest = plain.partition(".")
    return sys.intern(f"{first}@{owner}{dot}{rest}")  # thousands of tenants keep their names


def plain_name(name: str) -> str:
    """Return the plain name of a private or shared module. Any other name is unchanged."""
    first, dot, rest = name.partition(".")
    return f"{first.partition('@')[0]}{dot}{rest}"


def owner_of(name: str) -> str:
    """Return the owner of a private or shared module, or an empty string for any other module."""
    return name.partition(".")[0].partition("@")[2]


def tenant_of(name: str) -> str:
    """Return the tenant of a private module, or an empty string for any other module."""
    owner = owner_of(name)
    return "" if owner.startswith(_SHARED) else owner


def shared_owner(folder: str) -> str:
    """Return the owner of the shared modules in a folder."""
    return _SHARED + blake2b(folder.encode(), digest_size=4).hexdigest()
