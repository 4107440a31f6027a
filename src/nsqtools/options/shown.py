"""How text that somebody gave is shown: on one line, cut, and without the passwords in its URLs."""

from __future__ import annotations

import re

SHOWN_LENGTH_MAX = 100
# user:password@ after a scheme, or alone at the beginning of an address. A password may hold anything
# but the end of the authority; the last @ ends it.
_AFTER_SCHEME = re.compile(r"(://[^/?#\s:@]*):[^/?#\s]*@")
_AT_THE_START = re.compile(r"\A([^/?#\s:@]+):[^/?#\s]*@")


def mask_passwords(text: str) -> str:
    """`text` with `***` for each password in it."""
    if "@" not in text:
        return text
    return _AT_THE_START.sub(r"\1:***@", _AFTER_SCHEME.sub(r"\1:***@", text))


def printable(text: str) -> str:
    """`text` with everything that could confuse a terminal escaped, and without passwords."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in mask_passwords(text))


def quoted(text: str) -> str:
    """In double quotes, printable and at most SHOWN_LENGTH_MAX characters of it."""
    text = mask_passwords(text)  # before it is cut: half a password is no longer recognised
    if len(text) > SHOWN_LENGTH_MAX:
        text = text[:SHOWN_LENGTH_MAX] + "..."
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(escaped)}"'
