"""What may be shown of a configuration: secrets give way to `********`.

A value is secret where its key's name says so, where it stands as a password in a URL or among
`name=value` pairs, is a private key or behind `Bearer`, or where it holds a value that is known to
be secret. Better one too many.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import PurePath
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MASK = "********"

SHORT_SECRET = 4
"""Characters; a shorter secret is masked where it is the whole value, not inside other text."""

PASSWORD = 6
"""Characters; a shorter password of a URL may be a word that is all over the log, like a name."""

WORD = 8
"""Characters; a shorter text under a secret's name may be a word that means something elsewhere."""

_SECRET_NAME = re.compile(
    r"SECRET|PASS(?:W|PHRASE|CODE)|TOKEN|CREDENTIAL|PRIVATE|SALT|DSN|PWD|SIGNATURE|COOKIE_?VALUE"
    r"|(?:^|[^A-Z])(?:PASS|PIN|SIG|SAS)(?:$|[^A-Z])"
    # AUTHOR and AUTHORITY are none; AUTHORIZATION is
    r"|AUTH(?!OR(?!I[SZ]))"
    # KEYBOARD, KEYWORDS, KEYSPACE, MONKEY and such are none
    r"|(?<!MON)(?<!TUR)(?<!HOC)(?<!DON)(?<!HOT)"
    r"KEY(?!BOARD|WORD|NOTE|STONE|MAP|PAD|FRAME|SPACE|STROKE|_?PREFIX|_?FUNC|_?NAME)"
)
_WORD = re.compile(r"[^\s\"']+")
_USER = re.compile(r"://[^/\s:@]*:")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY[A-Z0-9 ]*)-----.*?(?:-----END \1-----|\Z)", re.DOTALL
)
_BEARER = re.compile(r"\b(Bearer\s+)[^\s\"',;]{8,}", re.IGNORECASE)
_NO_TEXT = (type(None), bool, int, timedelta)
"""Values of most keys of Flask."""

_PLAIN = re.compile(r"[A-Za-z0-9_.~-]*")
"""What is spelt the same in a URL and in a `repr`."""

_PAIR = re.compile(r"(?P<before>[?&]?)(?P<name>[\w.-]+)(?P<sign>\s*=\s*)(?P<value>[^\s&;]+)")

_ARGUMENT = re.compile(r"(?P<before>[?&])(?P<name>[\w.-]+)(?P<sign>=)(?P<value>[^\s&;#\"']+)")


def mask(key: str, value: Any, secrets: Iterable[str] = ()) -> Any:
    """Return `value` without what is secret in it; of the same type where nothing is.

    Args:
        key: its name, or "".
        value: plain data.
        secrets: texts that must not be shown wherever they occur.
    """
    return _masked(key, value, spellings(secrets))


def without(secrets: Iterable[str], text: str) -> str:
    """Return a text without these secrets; nothing else in it is masked."""
    return replaced(text, spellings(secrets))


def redact_credentials(text: str) -> str:
    """Return a line for the log without private keys, `Bearer` tokens, and what URLs in it have.

    That is passwords, and secret arguments.
    """
    text = _without_keys(text)
    return _ARGUMENT.sub(_masked_pair, _without_passwords(text)) if "://" in text else text


def secrets_in(values: Mapping[str, Any]) -> list[str]:
    """Return the texts that stand under names which say that they are secret; no mere words."""
    found: list[object] = []
    for key, value in values.items():
        if _is_secret_name(key):
            found += value if isinstance(value, list | tuple) else (value,)
    return [one for one in found if isinstance(one, str) and len(one) >= WORD]


def secrets_of(config: Mapping[str, Any]) -> list[str]:
    """Return the texts in an app's configuration that must not be told, wherever they stand.

    They are under names that say so, in what `secret()` returned (`hidden`, of a `MaskedConfig`),
    and in URLs as a password or an argument.
    """
    hidden = {"SECRET_KEY", "SECRET_KEY_FALLBACKS", "CLIENTS", *getattr(config, "hidden", ())}
    found: set[str] = set()
    for key, value in list(config.items()):
        if not isinstance(value, _NO_TEXT):
            found.update(_secret_texts(value, is_secret=key in hidden or _is_secret_name(key)))
    return list(found)


def _secret_texts(value: object, *, is_secret: bool) -> Iterator[str]:
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        if is_secret and len(value) >= WORD:
            yield value
        if "-----BEGIN " in value:
            yield from (one[0] for one in _PRIVATE_KEY.finditer(value))
        if "://" in value:
            yield from _secrets_of_urls(value)
    elif isinstance(value, Mapping):
        names = {name: _is_secret_name(str(name)) for name in list(value)}
        is_all = is_secret and not any(names.values())
        for name, item in list(value.items()):
            yield from _secret_texts(item, is_secret=is_all or names.get(name, False))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secret_texts(item, is_secret=is_secret)


def _secrets_of_urls(text: str) -> Iterator[str]:
    for word in _WORD.findall(text):
        end = word.rfind("@")
        user = _USER.search(word, 0, end) if end > 0 else None
        if user is not None:
            yield from _both_forms(word[user.end() : end])
    for found in _ARGUMENT.finditer(text):
        if _is_secret_pair(found):
            yield from _both_forms(found["value"])


def _both_forms(text: str) -> Iterator[str]:
    """Yield a text as it stands in a URL, and as it is meant; one so short may be any word."""
    yield from (one for one in {text, unquote(text)} if len(one) >= PASSWORD)


def spellings(secrets: Iterable[str]) -> list[str]:
    """Return the secrets, also as they stand in a URL and in a `repr`, the longest first."""
    forms = {*secrets} - {""}
    for one in [one for one in forms if not _PLAIN.fullmatch(one)]:
        forms.add(repr(one)[1:-1])
        forms.update(act(one, "", errors="surrogatepass") for act in (quote, quote_plus))
    return sorted(forms, key=len, reverse=True)


def _masked(key: str, value: Any, needles: list[str]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if _is_secret_name(key):
        return MASK if value or isinstance(value, int | float) else value
    if isinstance(value, Mapping):
        pairs = [
            (name, item, _masked("", name, needles), _masked(str(name), item, needles))
            for name, item in value.items()
        ]
        if all(name is key and item is shown for name, item, key, shown in pairs):
            return value
        return {key: shown for _, _, key, shown in pairs}
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            both = [(item, _masked("", item, needles)) for item in value]
            are_shown = all(item is shown for item, shown in both)
            return value if are_shown else kind(shown for _, shown in both)
    return _masked_scalar(value, needles)


def _masked_scalar(value: Any, needles: list[str]) -> Any:
    if isinstance(value, bytes):
        text = value.decode("utf-8", "replace")
    elif isinstance(value, str | PurePath):
        text = str(value)
    else:
        return MASK if _digits(value) in needles else value
    masked = _masked_text(text, needles)
    return value if masked == text else masked


def _digits(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a number of over 4,300 digits, or an object of an extension
        return ""


def _masked_text(text: str, needles: list[str]) -> str:
    if text in needles:
        return MASK
    text = replaced(text, needles)
    return _PAIR.sub(_masked_pair, _without_passwords(_without_keys(text)))


def _without_keys(text: str) -> str:
    if "-----BEGIN " in text:
        text = _PRIVATE_KEY.sub(MASK, text)
    return _BEARER.sub(rf"\1{MASK}", text)


def _without_passwords(text: str) -> str:
    return _WORD.sub(_without_password, text) if "://" in text and "@" in text else text


def _without_password(word: re.Match[str]) -> str:
    """Mask from a URL's first colon to the last @: people forget to escape what is between."""
    text = word[0]
    end = text.rfind("@")
    user = _USER.search(text, 0, end) if end > 0 else None
    if user is None or user.end() == end:
        return text
    return f"{text[: user.end()]}{MASK}{text[end:]}"


def replaced(text: str, needles: list[str]) -> str:
    """Return a text without these spellings of secrets."""
    for needle in needles:
        if len(needle) >= SHORT_SECRET:
            text = text.replace(needle, MASK)
    return text


def _masked_pair(match: re.Match[str]) -> str:
    if not _is_secret_pair(match):
        return match[0]
    return f"{match['before']}{match['name']}{match['sign']}{MASK}"


def _is_secret_pair(match: re.Match[str]) -> bool:
    is_code = match["before"] and match["name"].lower() == "code"  # in a URL it opens doors
    return bool(is_code) or _is_secret_name(match["name"])


@lru_cache(maxsize=1024)  # the same keys for each line that is logged
def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name.upper()) is not None
