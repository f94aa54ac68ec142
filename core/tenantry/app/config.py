"""An app's configuration, and what may be shown of it.

Flask hands `app.config` to every template, and whatever logs or reports an app's objects prints it:
there, secrets give way to `********`. Code that asks `app.config` gets what the tenant file says.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from flask import Config

from tenantry.database.url import parse_database_url
from tenantry.observability.redaction import MASK, redact_value

_KEYS = ("SECRET_KEY", "SECRET_KEY_FALLBACKS", "CLIENTS")


class MaskedConfig(Config):
    """Flask's configuration, which prints no secret. Lives as long as its app."""

    hidden: tuple[str, ...] = ()
    """Keys that hold a secret although their names do not say so."""

    def __repr__(self) -> str:
        shown = {key: redact_value(key, value) for key, value in Shown(self).items()}
        return f"<{type(self).__name__} {shown!r}>"


class Shown(Mapping[str, Any]):
    """What templates have as `config`: a view in which Tenantry's keys and passwords are masked.

    A name alone masks nothing here, as it does in a log: pages do show a key of somebody's maps.
    """

    def __init__(self, config: MaskedConfig) -> None:
        self._config = config

    def __getitem__(self, key: str) -> Any:
        value = self._config[key]
        if key in _KEYS or key in self._config.hidden:
            return MASK if value else value
        return redact_value("", value, _known(self._config))

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)

    def __repr__(self) -> str:
        return repr(self._config)


def _known(config: Mapping[str, Any]) -> list[str]:
    """Return the secrets that must not be shown wherever they stand."""
    known = [config.get("SECRET_KEY"), *(config.get("SECRET_KEY_FALLBACKS") or ())]
    with suppress(ValueError):  # an endpoint has put something else there
        known.append(parse_database_url(str(config.get("DATABASE_URI"))).password)
    texts = [one.decode("latin-1") if isinstance(one, bytes) else one for one in known]
    return [one for one in texts if isinstance(one, str) and one]
