"""Finding a pattern in bodies. Pure.

A call for each body costs more than the search itself, and lets go of the interpreter's lock each time:
beside a busy loop that is most of it. So bodies are searched together, one line behind the other, by
one call for each that matches. That is exact where no match can go over a newline and no body holds
one; where this is not so, each is searched by itself. A text without any syntax is found without RE2.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsqtools.options import Pattern

NEWLINE = b"\n"
# What means something else in a block of lines than in one of them: the ends of the whole text, and
# flags that a pattern sets itself. Wherever it stands: being wrong here costs speed alone.
_OF_ONE_BODY = re.compile(r"\\[AzQC]|\(\?(?!:|[is]+[:)])")
# A match among many lines costs as much as the search of so many bodies, each by itself.
DENSE = 3
_LITERAL = re.compile(r"[^\\.+*?()|\[\]{}^$\n]+")


class Search:
    """One pattern, in the syntax of RE2; what is no UTF-8 in a body matches no character."""

    def __init__(self, pattern: Pattern) -> None:
        text = pattern.pattern
        self._literal = text.encode() if _LITERAL.fullmatch(text) else None
        self._is_dense = False
        """Whether it was found in so many of the last bodies that these are searched one by one."""
        self._alone = _compiled(text, never_nl=False)
        self._together = None if _OF_ONE_BODY.search(text) else _compiled(f"(?m){text}")

    def positions(self, bodies: Sequence[bytes]) -> list[int]:
        """Of the bodies in which it is found, in their order."""
        if self._literal is not None:
            literal = self._literal
            return [at for at, body in enumerate(bodies) if literal in body]
        found = None if self._is_dense else self._in_together(bodies)
        if found is None:
            search = self._alone.search
            found = [at for at, body in enumerate(bodies) if search(body)]
        self._is_dense = len(found) * DENSE > len(bodies)
        return found

    def _in_together(self, bodies: Sequence[bytes]) -> list[int] | None:
        """None where that is not the same."""
        if self._together is None:
            return None
        text = NEWLINE.join(bodies) + NEWLINE
        return list(self._lines_of(text)) if text.count(NEWLINE) == len(bodies) else None

    def lines(self, text: bytes) -> Iterator[bytes]:
        """The lines in which it is found, of a text of lines that all have their ends; ends included."""
        if self._together is None:
            for line in text.split(NEWLINE)[:-1]:
                if self._alone.search(line):
                    yield line + NEWLINE
            return
        for at, start, end in self._found(text):
            yield text[text.rfind(NEWLINE, at, start) + 1 or at : end]

    def _lines_of(self, text: bytes) -> Iterator[int]:
        """The numbers of the lines in which it is found."""
        line = 0
        for at, start, _ in self._found(text):
            line += text.count(NEWLINE, at, start)
            yield line
            line += 1

    def _found(self, text: bytes) -> Iterator[tuple[int, int, int]]:
        """Of each line in which it is found: where the search began, where the match does, and where the
        line ends."""
        at = 0
        while at < len(text):
            start = self._next(text, at)
            if not 0 <= start < len(text):
                return  # none, or behind the last line
            end = text.find(NEWLINE, start) + 1
            yield at, start, end
            at = end

    def _next(self, text: bytes, at: int) -> int:
        """Where the first match from there on begins; -1 where there is none."""
        if self._literal is not None:
            return text.find(self._literal, at)
        assert self._together is not None  # noqa: S101
        found = self._together.search(text, at)
        return -1 if found is None else int(found.start())


def _compiled(text: str, *, never_nl: bool = True) -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False
    options.never_capture = True  # which would be looked for with every match
    options.never_nl = never_nl
    return re2.compile(text, options)
