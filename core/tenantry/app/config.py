"""An app's configuration, which hides its secrets where it is shown.

Flask passes `app.config` to every template, and logs and error reports print it. In both, secrets
appear as `********`. Code that reads `app.config` gets the values of the tenant file.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from flask import Config

from tenantry.database.url import parse_database_url
from tenantry.observability.redaction import MASK, SECRET_KEYS, redact_value


class MaskedConfig(Config):
    """Flask's configuration with a `repr` without secrets. Lives as long as its app."""

    hidden: tuple[str, ...] = ()
    """Keys whose value is secret although their name does not suggest it."""

    def __repr__(self) -> str:
        shown = {key: redact_value(key, value) for key, value in Shown(self).items()}
        return f"<{type(self).__name__} {shown!r}>"


class Shown(Mapping[str, Any]):
    """The `config` of templates: a view that masks Tenantry's keys and passwords.

    Unlike in logs, a name such as `MAPS_KEY` masks nothing, because pages do show such keys.
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
    """Return the secrets that are masked in any value."""
    known = [config.get("SECRET_KEY"), *(config.get("SECRET_KEY_FALLBACKS") or ())]
    with suppress(ValueError):  # an endpoint changed it
        known.append(parse_database_url(str(config.get("DATABASE_URI"))).password)
    texts = [one.decode("latin-1") if isinstance(one, bytes) else one for one in known]
    return [one for one in texts if isinstance(one, str) and one]
