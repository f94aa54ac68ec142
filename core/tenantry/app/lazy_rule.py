"""A URL rule that compiles its URL builders on first use.

A `LazyRule` matches requests in the same way as Werkzeug's `Rule`. Most rules never build a URL,
but the URL builders are the most expensive part of a rule. The URL builders of 100 rules take 55 to
125 ms and 0.65 MB.
"""

from collections.abc import Callable

from werkzeug.routing import Rule

# This module uses private attributes of Werkzeug 3.1: `Rule.compile` calls `_compile_builder`
# twice, and stores the results as `_build` and `_build_unknown`.


class LazyRule(Rule):
    """A URL rule for `Flask.url_rule_class`.

    `LazyRule` is thread-safe. If two threads compile the same URL builder at the same time, no harm
    is done.
    """

    def _compile_builder(self, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
        return _build_with_unknown_lazy if append_unknown else _build_lazy


# `rule` is positional-only, because a URL variable can be named `rule`.
def _build_lazy(rule: LazyRule, /, **values: object) -> tuple[str, str]:
    rule._build = Rule._compile_builder(rule, append_unknown=False).__get__(rule)  # noqa: SLF001
    return rule._build(**values)  # noqa: SLF001


def _build_with_unknown_lazy(rule: LazyRule, /, **values: object) -> tuple[str, str]:
    build = Rule._compile_builder(rule, append_unknown=True).__get__(rule)  # noqa: SLF001
    rule._build_unknown = build  # noqa: SLF001
    return rule._build_unknown(**values)  # noqa: SLF001
