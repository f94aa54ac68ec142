"""Whose secrets must not be in what is told now: in a log line, a traceback, the reason of a mount.

An endpoint raises `ValueError(f"refused: {config['API_TOKEN']}")`, and the text goes far. Each
request and each build notes the configuration that it runs with; what is told meanwhile, or of an
exception that came out of it, is looked through for that configuration's secrets. They are found
anew each time: nothing is kept, and a line of no tenant costs a look at a context variable.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from tenantry.observability.redaction import secrets_of, spellings

Config = Mapping[str, Any]

_current: ContextVar[Config | None] = ContextVar("tenantry.hiding", default=None)

_NOTED = "tenantry.hiding"
"""Where an exception keeps the configuration that it came out of."""


def set_secret_scope(config: Config) -> None:
    """Hide the secrets of a configuration to the end of the current context."""
    _current.set(config)


@contextmanager
def hiding(config: Config) -> Iterator[None]:
    """Hide the secrets of a configuration inside, and later in what is told of an exception."""
    before = _current.set(config)
    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # an exception of an endpoint may refuse it
            vars(error)[_NOTED] = config
        raise
    finally:
        _current.reset(before)


def hidden_now(error: object = None) -> list[str]:
    """Return the texts that must not be in what is told now: for `masking.replaced`.

    Args:
        error: an exception, or an `exc_info`, that it is about.
    """
    if isinstance(error, tuple):
        error = error[1]
    configs = [_current.get() or _of_app_context()]
    if isinstance(error, BaseException):
        configs.append(vars(error).get(_NOTED))
    there = [one for one in configs if one is not None]
    return spellings(secret for one in there for secret in secrets_of(one)) if there else []


def _of_app_context() -> Config | None:
    """Return the configuration of Flask's current app: of a command, or a thread of an endpoint."""
    flask = sys.modules.get("flask.globals")  # gunicorn's master logs too, and has no Flask
    if flask is None or not flask.app_ctx:
        return None
    config: Config = flask.app_ctx.app.config
    return config
