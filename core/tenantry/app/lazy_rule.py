"""Werkzeug's URL rule, which compiles what builds URLs on first use.

Matching is untouched. For most rules no URL is ever built, and compiling the builders is nearly
all that a rule costs: with 100 rules 55 to 125 ms and 0.65 MB of an app's build.
"""

from collections.abc import Callable

from werkzeug.routing import Rule

# `_compile_builder`, `_build` and `_build_unknown` are private to Werkzeug (3.1): a `Rule` calls
# the first twice while it is compiled, binds the results, and calls those in `build` alone. The
# test compares with Werkzeug's own.


class LateRule(Rule):
    """A rule for `Flask.url_rule_class`. As thread-safe as its parent: two compile the same."""

    def _compile_builder(self, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
        return _build_with_unknown_late if append_unknown else _build_late


# Positional only: a URL's value may have any name.
def _build_late(rule: LateRule, /, **values: object) -> tuple[str, str]:
    rule._build = Rule._compile_builder(rule, append_unknown=False).__get__(rule)  # noqa: SLF001
    return rule._build(**values)  # noqa: SLF001


def _build_with_unknown_late(rule: LateRule, /, **values: object) -> tuple[str, str]:
    build = Rule._compile_builder(rule, append_unknown=True).__get__(rule)  # noqa: SLF001
    rule._build_unknown = build  # noqa: SLF001
    return rule._build_unknown(**values)  # noqa: SLF001
