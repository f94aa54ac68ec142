"""A Flask configuration that masks secrets, and in which the keys of a tenant file win.

Flask passes `app.config` to every template, and log lines and error reports can contain its `repr`.
Templates and the `repr` show `********` instead of a secret. Python code that reads `app.config`
gets the real values.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Self

from flask import Config

from tenantry.database.session import Database, with_plugin
from tenantry.database.url import parse_database_url
from tenantry.observability.redaction import MASK, SECRET_KEYS, redact_value


class TenantConfig(Config):
    """A Flask configuration whose `repr` shows no secrets, and whose pinned keys never change.

    An app assigns its own settings while it is built, in many ways. An assignment to a pinned key,
    or its deletion, has no effect, as if the tenant file came after the app's settings.
    """

    hidden: tuple[str, ...] = ()
    """Configuration keys that hold a secret, although their names do not suggest it."""
    pinned: frozenset[str] = frozenset()
    """The keys that keep their values."""
    database: Database | None = None
    """The database that Flask-SQLAlchemy uses; None for the database in its own keys."""

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self.pinned:
            super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        if key not in self.pinned:
            super().__delitem__(key)

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc]
        self.update(other)
        return self

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set several keys, except pinned ones."""
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def pop(self, key: str, *default: Any) -> Any:
        """Remove a key unless it is pinned, and return its value."""
        return self[key] if key in self.pinned else super().pop(key, *default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Set a key that is not set, and return its value as Flask-SQLAlchemy gets it."""
        value = super().setdefault(key, default)
        if key == "SQLALCHEMY_ENGINE_OPTIONS" and self.database is not None:
            return with_plugin(self.database, value)
        return value

    def __repr__(self) -> str:
        shown = {key: redact_value(key, value) for key, value in Shown(self).items()}
        return f"<{type(self).__name__} {shown!r}>"


class FactoryArgument(Mapping[str, Any]):
    """The configuration that a factory receives: a mapping whose keys are also attributes.

    It contains the keys of the tenant file, and what the tenant always has: `APP_NAME`,
    `URL_PREFIX`, `DATABASE_URI` and `SQLALCHEMY_DATABASE_URI`. Flask's `from_mapping` and
    `from_object` accept it. A factory that expects the name of a configuration or a file instead
    fails with an error that says what to write.
    """

    def __init__(self, config: TenantConfig) -> None:
        keys = config.pinned | {"APP_NAME", "URL_PREFIX", "DATABASE_URI"}
        self._values = {key: value for key, value in config.items() if key in keys}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            text = f"the tenant's configuration has no key {name!r}"
            raise AttributeError(text, name=name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __dir__(self) -> list[str]:
        return list(self._values)

    def __repr__(self) -> str:
        return f"<FactoryArgument {', '.join(self._values)}>"

    def __hash__(self) -> int:
        raise TypeError(_MISUSE.format("a name"))

    def __fspath__(self) -> str:
        raise ValueError(_MISUSE.format("a file"))  # `os.path.join` replaces a TypeError


_MISUSE = (
    "the factory uses its argument as {}, but the argument is the tenant's configuration; write "
    "the argument in 'APP', as in \"shop:create_app('production')\""
)


class Shown(Mapping[str, Any]):
    """The `config` variable of templates: a view of `app.config` that masks secrets.

    Templates can read a key such as `MAPS_KEY`, which is masked in logs, because a page may need to
    contain the key.
    """

    def __init__(self, config: TenantConfig) -> None:
        self._config = config

    def __getitem__(self, key: str) -> Any:
        value = self._config[key]
        if key in SECRET_KEYS or key in self._config.hidden:
            return MASK if value else value
        return redact_value("", value, _known(self._config))

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)

    def __repr__(self) -> str:
        return repr(self._config)


def _known(config: Mapping[str, Any]) -> list[str]:
    """Return the app's signing keys and its database password."""
    known = [config.get("SECRET_KEY"), *(config.get("SECRET_KEY_FALLBACKS") or ())]
    with suppress(ValueError):  # an endpoint may set `DATABASE_URI` to an invalid URL
        known.append(parse_database_url(str(config.get("DATABASE_URI"))).password)
    texts = [one.decode("latin-1") if isinstance(one, bytes) else one for one in known]
    return [one for one in texts if isinstance(one, str) and one]


def config_class_of(chosen: type[Config]) -> type[TenantConfig]:
    """Return a class that adds the behavior of `TenantConfig` to the class that an app chose."""
    if chosen is Config:
        return TenantConfig
    return type(chosen.__name__, (TenantConfig, chosen), {})
