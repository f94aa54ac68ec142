"""Resolves the plain path of a mapped class, as in `relationship("shop.models.Parent")`.

SQLAlchemy registers each class under the parts of its module's name, and the first part of a
private module's name contains the tenant.
"""

from contextlib import suppress
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from tenantry.private_code.names import owner_of, private_name

if TYPE_CHECKING:
    from sqlalchemy.orm.clsregistry import _class_resolver


@cache
def resolve_plain_paths() -> None:
    """Let SQLAlchemy also look up private names, once in each process.

    The class that has the relationship decides which tenant a plain path belongs to.
    """
    from sqlalchemy.orm.clsregistry import _class_resolver  # noqa: PLC0415 - takes 0.3 s

    access = _class_resolver._access_cls  # noqa: SLF001 - the registry has no public hook

    @wraps(access)
    def access_of_tenant(self: "_class_resolver", key: str) -> Any:
        try:
            return access(self, key)
        except KeyError:
            if owner := owner_of(self.cls.__module__):
                with suppress(KeyError):  # the first error names the key as written
                    return access(self, private_name(key, owner))
            raise

    _class_resolver._access_cls = access_of_tenant  # type: ignore[method-assign]  # noqa: SLF001
