"""Redaction: `********` replaces secrets in log lines, reports, and the output of commands.

The module answers three questions, in the following order:

- What is a secret? A value with a name such as `API_TOKEN`, a password or token in a URL, a private
  key, a `Bearer` token, and each value that `secret()` returned to a tenant file.
- Which secrets apply? A request or a build sets its app's configuration as the *secret scope*. The
  secrets of the configuration are redacted in every log line inside the scope, and in every
  exception that leaves the scope.
- How is a text redacted? `redact` removes known secrets, `redact_credentials` removes texts that
  look like secrets, and `redact_value` removes known secrets and likely secrets from a value with a
  key.

When in doubt, a value is redacted.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from functools import lru_cache
from pathlib import PurePath
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from tenantry.errors import one_line

MASK = "********"

MIN_SECRET_CHARS = 8
"""Minimum length of a value with a secret name. A shorter value can be a common word, which would
be redacted everywhere."""

MIN_PASSWORD_CHARS = 6
"""Minimum length of a URL password that is also redacted outside the URL. A shorter password can be
a common word, such as a user name."""

MIN_REPLACED_CHARS = 4
"""Minimum length of a secret that is redacted inside other text. A shorter secret is redacted only
if it is the whole value."""

SIGNING_KEYS = ("SECRET_KEY", "SECRET_KEY_FALLBACKS")
"""The keys of a tenant file whose values sign sessions and tokens."""

SECRET_KEYS = (*SIGNING_KEYS, "CLIENTS")
"""The keys of a tenant file whose values are always secret, even if `_SECRET_NAME` does not match
the key. `tenants.loader_child` has its own list, because it must not import this module."""

Config = Mapping[str, Any]

# -- what is a secret -----------------------------------------------------------------------------

_SECRET_NAME = re.compile(
    r"SECRET|PASS(?:W|PHRASE|CODE)|TOKEN|CREDENTIAL|PRIVATE|SALT|DSN|PWD|SIGNATURE|COOKIE_?VALUE"
    r"|(?:^|[^A-Z])(?:PASS|PIN|SIG|SAS)(?:$|[^A-Z])"
    # AUTH and AUTHORIZATION are secret names; AUTHOR and AUTHORITY are not.
    r"|AUTH(?!OR(?!I[SZ]))"
    # KEY is a secret name; MONKEY, KEYBOARD and KEYWORDS are not.
    r"|(?<!MON)(?<!TUR)(?<!HOC)(?<!DON)(?<!HOT)"
    r"KEY(?!BOARD|WORD|NOTE|STONE|MAP|PAD|FRAME|SPACE|STROKE|_?PREFIX|_?FUNC|_?NAME)"
)
_WORD = re.compile(r"[^\s\"']+")
_USER = re.compile(r"://[^/\s:@]*:")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY[A-Z0-9 ]*)-----.*?(?:-----END \1-----|\Z)", re.DOTALL
)
_BEARER = re.compile(r"\b(Bearer\s+)[^\s\"',;]{8,}", re.IGNORECASE)
_PAIR = re.compile(r"(?P<before>[?&]?)(?P<name>[\w.-]+)(?P<sign>\s*=\s*)(?P<value>[^\s&;]+)")
_ARGUMENT = re.compile(r"(?P<before>[?&])(?P<name>[\w.-]+)(?P<sign>=)(?P<value>[^\s&;#\"']+)")
# The characters that neither a URL nor a `repr` escapes.
_UNESCAPED = re.compile(r"[A-Za-z0-9_.~-]*")
_NOT_TEXT = (type(None), bool, int, timedelta)


def secrets_in(config: Config) -> list[str]:
    """Return the secrets in an app's configuration.

    Secrets are the values of keys with secret names, the values of the keys in `config.hidden` (see
    `TenantConfig`), and the passwords and tokens in URLs.
    """
    keys = {*SECRET_KEYS, *getattr(config, "hidden", ())}
    found: set[str] = set()
    for key, value in list(config.items()):
        if not isinstance(value, _NOT_TEXT):
            found.update(_secret_texts(value, is_secret=key in keys or _is_secret_name(key)))
    return list(found)


def _secret_texts(value: object, *, is_secret: bool) -> Iterator[str]:
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        if is_secret and len(value) >= MIN_SECRET_CHARS:
            yield value
        if "-----BEGIN " in value:
            yield from (match[0] for match in _PRIVATE_KEY.finditer(value))
        if "://" in value:
            yield from _url_secrets(value)
    elif isinstance(value, Mapping):
        names = {name: _is_secret_name(str(name)) for name in list(value)}
        is_every_item = is_secret and not any(names.values())
        for name, item in list(value.items()):
            yield from _secret_texts(item, is_secret=is_every_item or names.get(name, False))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secret_texts(item, is_secret=is_secret)


def _url_secrets(text: str) -> Iterator[str]:
    found = [word[slice(*span)] for word in _WORD.findall(text) if (span := _password_span(word))]
    found += [match["value"] for match in _ARGUMENT.finditer(text) if _is_secret_pair(match)]
    for secret in found:
        yield from (s for s in {secret, unquote(secret)} if len(s) >= MIN_PASSWORD_CHARS)


def _password_span(word: str) -> tuple[int, int] | None:
    """Return the start and the end of the password in a URL, or None if the URL has none.

    The password ends at the last @, because people forget to escape an @ in a password.
    """
    end = word.rfind("@")
    user = _USER.search(word, 0, end) if end > 0 else None
    return (user.end(), end) if user is not None and user.end() < end else None


@lru_cache(maxsize=1024)  # log lines repeat the same few names
def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name.upper()) is not None


def _is_secret_pair(match: re.Match[str]) -> bool:
    is_code = bool(match["before"]) and match["name"].lower() == "code"  # an OAuth code in a URL
    return is_code or _is_secret_name(match["name"])


# -- which secrets apply --------------------------------------------------------------------------

_scope: ContextVar[Config | None] = ContextVar("tenantry.secret_scope", default=None)

_SCOPE = "tenantry.secret_scope"
"""The exception attribute that holds the secret scope in which the exception was raised."""


set_secret_scope = _scope.set
"""Make a `Config` the secret scope until the end of the current context."""


@contextmanager
def secret_scope(config: Config) -> Iterator[None]:
    """Make `config` the secret scope of the block, and of exceptions that leave the block."""
    token = _scope.set(config)
    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # an exception class can forbid attributes
            vars(error)[_SCOPE] = config
        raise
    finally:
        _scope.reset(token)


def secrets_in_scope(error: object = None) -> list[str]:
    """Return the secrets of the current scope, and of the scope in which `error` was raised.

    Args:
        error: an exception, or an `exc_info` tuple.
    """
    if isinstance(error, tuple):
        error = error[1]
    configs = [_scope.get() or _flask_config()]
    if isinstance(error, BaseException):
        configs.append(vars(error).get(_SCOPE))
    return [secret for config in configs if config is not None for secret in secrets_in(config)]


def redact_in_scope(text: str, error: object = None) -> str:
    """Return a text without the secrets of the current scope and of the scope of `error`."""
    return redact(text, secrets_in_scope(error))


def one_line_in_scope(error: BaseException, *, with_type: bool = False) -> str:
    """Return `one_line(error)` without the secrets of the current scope and of the error."""
    try:
        return redact_in_scope(one_line(error, with_type=with_type), error)
    except BaseException:  # noqa: BLE001 - an object in the configuration can raise anything
        return type(error).__name__


def _flask_config() -> Config | None:
    """Return the configuration of Flask's current app, or None outside an app context."""
    flask = sys.modules.get("flask.globals")  # gunicorn's master does not import Flask
    if flask is None or not flask.app_ctx:
        return None
    config: Config = flask.app_ctx.app.config
    return config


# -- how a text is redacted -----------------------------------------------------------------------


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return a text without the given `secrets`, but otherwise unchanged."""
    return _redact_forms(text, _forms(secrets))


def redact_credentials(text: str) -> str:
    """Return a text without private keys, `Bearer` tokens, and passwords and tokens in URLs."""
    text = _redact_keys(text)
    return _ARGUMENT.sub(_redact_pair, _redact_passwords(text)) if "://" in text else text


def redact_value(key: str, value: Any, secrets: Iterable[str] = ()) -> Any:
    """Return a redacted copy of a value, or the same object if the value has no secrets.

    Args:
        key: the name of the value, or "" for a value without a name.
        value: plain data.
        secrets: texts to redact wherever they occur.
    """
    return _redact_value(key, value, _forms(secrets))


def _forms(secrets: Iterable[str]) -> list[str]:
    """Return each secret as it is, URL-escaped and `repr`-escaped, the longest text first."""
    forms = {*secrets} - {""}
    for secret in [secret for secret in forms if not _UNESCAPED.fullmatch(secret)]:
        forms.add(repr(secret)[1:-1])
        forms.update(escape(secret, "", errors="surrogatepass") for escape in (quote, quote_plus))
    return sorted(forms, key=len, reverse=True)


def _redact_forms(text: str, forms: list[str]) -> str:
    for form in forms:
        if len(form) >= MIN_REPLACED_CHARS:
            text = text.replace(form, MASK)
    return text


def _redact_value(key: str, value: Any, forms: list[str]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if _is_secret_name(key):
        return MASK if value or isinstance(value, int | float) else value
    if isinstance(value, Mapping):
        return _redact_mapping(value, forms)
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            pairs = [(item, _redact_value("", item, forms)) for item in value]
            is_same = all(item is redacted for item, redacted in pairs)
            return value if is_same else kind(redacted for _, redacted in pairs)
    return _redact_scalar(value, forms)


def _redact_mapping(value: Mapping[Any, Any], forms: list[str]) -> Mapping[Any, Any]:
    redacted = {
        _redact_value("", name, forms): _redact_value(str(name), item, forms)
        for name, item in value.items()
    }
    pairs = zip(value.items(), redacted.items(), strict=False)
    is_same = all(name is key and item is shown for (name, item), (key, shown) in pairs)
    return value if is_same else redacted


def _redact_scalar(value: Any, forms: list[str]) -> Any:
    if isinstance(value, bytes):
        text = value.decode("utf-8", "replace")
    elif isinstance(value, str | PurePath):
        text = str(value)
    else:
        try:
            return MASK if str(value) in forms else value
        except Exception:  # noqa: BLE001 - an int of over 4,300 digits, or an endpoint's own class
            return value
    redacted = MASK if text in forms else _redact_forms(text, forms)
    redacted = _PAIR.sub(_redact_pair, _redact_passwords(_redact_keys(redacted)))
    return value if redacted == text else redacted


def _redact_keys(text: str) -> str:
    if "-----BEGIN " in text:
        text = _PRIVATE_KEY.sub(MASK, text)
    return _BEARER.sub(rf"\1{MASK}", text)


def _redact_passwords(text: str) -> str:
    return _WORD.sub(_redact_password, text) if "://" in text and "@" in text else text


def _redact_password(match: re.Match[str]) -> str:
    word = match[0]
    span = _password_span(word)
    return word if span is None else f"{word[: span[0]]}{MASK}{word[span[1] :]}"


def _redact_pair(match: re.Match[str]) -> str:
    if not _is_secret_pair(match):
        return match[0]
    return f"{match['before']}{match['name']}{match['sign']}{MASK}"
