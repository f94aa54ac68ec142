"""A Flask configuration that masks secrets in templates, logs and error reports.

Flask passes `app.config` to every template, and log lines and error reports can contain its `repr`.
Templates and the `repr` show `********` instead of a secret. Python code that reads `app.config`
gets the real values.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from flask import Config

from tenantry.database.url import parse_database_url
from tenantry.observability.redaction import MASK, SECRET_KEYS, redact_value


class MaskedConfig(Config):
    """A Flask configuration whose `repr` shows no secrets."""

    hidden: tuple[str, ...] = ()
    """Configuration keys that hold a secret, although their names do not suggest it."""

    def __repr__(self) -> str:
        shown = {key: redact_value(key, value) for key, value in Shown(self).items()}
        return f"<{type(self).__name__} {shown!r}>"


class Shown(Mapping[str, Any]):
    """The `config` variable of templates: a view of `app.config` that masks secrets.

    Templates can read a key such as `MAPS_KEY`, which is masked in logs, because a page may need to
    contain the key.
    """

    def __init__(self, config: MaskedConfig) -> None:
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
