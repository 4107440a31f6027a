"""Templates: `{topic}` and the like in URLs and headers, each escaped for where it stands."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# What is the same for all messages of a topic, and what is not.
OF_TOPIC = ("topic", "channel")
OF_MESSAGE = ("id", "timestamp", "attempts", "nsqd")
FIELDS = (*OF_TOPIC, *OF_MESSAGE)
_FIELD = re.compile(r"\{([^{}]*)\}")


def escape_url(value: str) -> str:
    """For a path or a query: only letters, digits and `-._~` stay as they are."""
    return quote(value, safe="")


def escape_header(value: str) -> str:
    """For a header: whatever could end it, or is no printable ASCII, is percent-encoded."""
    return quote(value, safe="!\"#$&'()*+,/:;<=>?@[\\]^`{|}~ ")


class Template:
    """Text with fields. Those in `fixed` are filled in at once, the others by `render`."""

    def __init__(
        self, text: str, *, fixed: Mapping[str, str], escape: Callable[[str], str]
    ) -> None:
        """Raises ValueError for a field that is not known."""
        self._escape = escape
        self._varying: set[str] = set()
        pieces = _FIELD.split(text)
        for at in range(0, len(pieces), 2):
            pieces[at] = pieces[at].replace("%", "%%")
        for at in range(1, len(pieces), 2):
            pieces[at] = self._field(pieces[at], fixed)
        self._format = "".join(pieces)

    def _field(self, name: str, fixed: Mapping[str, str]) -> str:
        if name not in FIELDS:
            known = " ".join(f"{{{field}}}" for field in FIELDS)
            raise ValueError(f"unknown field {{{name}}}, known are {known}")
        if name in fixed:
            return self._escape(fixed[name]).replace("%", "%%")
        self._varying.add(name)
        return f"%({name})s"

    @property
    def is_fixed(self) -> bool:
        """Whether all messages get the same."""
        return not self._varying

    def render(self, values: Mapping[str, str]) -> str:
        """The text for a message; `values` has what is not fixed."""
        escaped = {name: self._escape(values[name]) for name in self._varying}
        return self._format % escaped
