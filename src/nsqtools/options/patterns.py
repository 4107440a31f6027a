"""The kind of regular expressions, in the syntax that NSQ's tools take: RE2's, which is Go's.

They are RE2's own work (google-re2): Python's `re` takes `[[:alpha:]]` for a set of other characters,
has no `\\z` and no `\\pL`, and lets `$` match before a newline. A translation would be some hundred lines
that nobody maintains. As in Go, lookarounds and back references are refused, and no pattern takes
longer than linear time. It is imported with the first pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from nsqtools.options.kinds import Kind


class Pattern(Protocol):
    """What there is of a compiled regular expression; `re.Pattern` has it, too."""

    @property
    def pattern(self) -> str:
        """The text that it was made of."""
        ...

    def search(self, string: str, /) -> object | None:
        """What is found anywhere in a text, or None."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Regex(Kind[Pattern]):
    """A regular expression, compiled once."""

    metavar: str = "REGEX"
    explain: str = "a regular expression as Go writes them (RE2), found anywhere unless anchored"

    def parse(self, text: str) -> Pattern:
        import re2

        options = re2.Options()
        options.log_errors = False
        try:
            pattern: Pattern = re2.compile(text, options)
        except re2.error as error:
            reason = error.args[0]
            shown = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else reason
            raise ValueError(f"not a regular expression: {shown}") from error
        return pattern

    def render(self, value: Pattern) -> str:
        return value.pattern


REGEX = Regex()
