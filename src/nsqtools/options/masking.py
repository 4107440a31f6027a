"""Passwords in URLs and addresses, which must not be shown to anybody."""

from __future__ import annotations

import re

# user:password@ after a scheme, or alone at the beginning of an address. A password may hold anything
# but the end of the authority; the last @ ends it.
_AFTER_SCHEME = re.compile(r"(://[^/?#\s:@]*):[^/?#\s]*@")
_AT_THE_START = re.compile(r"\A([^/?#\s:@]+):[^/?#\s]*@")


def mask_passwords(text: str) -> str:
    """`text` with `***` for each password in it."""
    if "@" not in text:
        return text
    return _AT_THE_START.sub(r"\1:***@", _AFTER_SCHEME.sub(r"\1:***@", text))
