"""A URL rule that compiles its URL builders on first use.

`LazyRule` matches requests like Werkzeug's `Rule`. Most URL rules never build a URL, and the URL
builders are the main cost of a rule: with 100 rules, 55 to 125 ms and 0.65 MB of an app's build.
"""

from collections.abc import Callable

from werkzeug.routing import Rule

# Private to Werkzeug 3.1: `Rule.compile` calls `_compile_builder` twice and binds the results to
# `_build` and `_build_unknown`, which only `build` calls. A test compares `LazyRule` with
# Werkzeug's `Rule`.


class LazyRule(Rule):
    """A value for `Flask.url_rule_class`. Thread-safe: two threads may compile a builder twice."""

    def _compile_builder(self, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
        return _build_with_unknown_lazy if append_unknown else _build_lazy


# Positional-only, because a value of the URL can have any name.
def _build_lazy(rule: LazyRule, /, **values: object) -> tuple[str, str]:
    rule._build = Rule._compile_builder(rule, append_unknown=False).__get__(rule)  # noqa: SLF001
    return rule._build(**values)  # noqa: SLF001


def _build_with_unknown_lazy(rule: LazyRule, /, **values: object) -> tuple[str, str]:
    build = Rule._compile_builder(rule, append_unknown=True).__get__(rule)  # noqa: SLF001
    rule._build_unknown = build  # noqa: SLF001
    return rule._build_unknown(**values)  # noqa: SLF001
