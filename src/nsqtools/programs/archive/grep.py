"""Finding a pattern in bodies. Pure.

A call for each body costs more than the search itself. Of `lines` many bodies lie one behind the other,
so a block of them is searched by one call, in which no match can go over a newline.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nsqtools.options import Pattern

NEWLINE = b"\n"
# What means something else in a block of lines than in one of them: the ends of the whole text, and
# flags that a pattern sets itself. Wherever it stands: being wrong here costs speed alone.
_OF_ONE_BODY = re.compile(r"\\[AzQC]|\(\?")


class Grep:
    """One pattern, in the syntax of RE2; what is no UTF-8 in a body matches no character."""

    def __init__(self, pattern: Pattern) -> None:
        self._search = cast("Callable[[bytes], object]", pattern.search)
        self._together = None if _OF_ONE_BODY.search(pattern.pattern) else _compiled(pattern)

    def positions(self, bodies: Sequence[bytes]) -> list[int]:
        """Of the bodies in which it is found."""
        search = self._search
        return [at for at, body in enumerate(bodies) if search(body)]

    def lines(self, text: bytes) -> Iterator[bytes]:
        """The lines in which it is found, of a text of lines that all have their ends; ends included."""
        if self._together is None:
            for line in text.split(NEWLINE)[:-1]:
                if self._search(line):
                    yield line + NEWLINE
            return
        at = 0
        while at < len(text) and (found := self._together.search(text, at)) is not None:
            start = found.start()
            if start >= len(text):
                return  # behind the last line
            begin = text.rfind(NEWLINE, at, start) + 1 or at
            end = text.find(NEWLINE, start) + 1
            yield text[begin:end]
            at = end


def _compiled(pattern: Pattern) -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False
    options.never_nl = True
    return re2.compile(f"(?m){pattern.pattern}", options)
