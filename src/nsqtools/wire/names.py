"""Topic and channel names, and Go's %q (spec: tcp-protocol, parts 1 and 2.1)."""

from __future__ import annotations

import re

NAME_LENGTH_MAX = 64
EPHEMERAL = "#ephemeral"
_NAME = re.compile(r"[.a-zA-Z0-9_-]+(#ephemeral)?", re.ASCII)
_GO_ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
}


def is_valid_name(name: str) -> bool:
    """Whether `name` may name a topic or a channel: 1 to 64 characters, suffix included."""
    return len(name) <= NAME_LENGTH_MAX and _NAME.fullmatch(name) is not None


def is_ephemeral(name: str) -> bool:
    """Whether a topic or channel of this name lives in memory only."""
    return name.endswith(EPHEMERAL)


def go_quote(raw: bytes) -> str:
    """`raw` as Go's %q writes it, the form in which nsqd repeats a bad name."""
    out = ['"']
    for char in raw.decode("utf-8", "surrogateescape"):
        code = ord(char)
        if char in _GO_ESCAPES:
            out.append(_GO_ESCAPES[char])
        elif 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\x{code - 0xDC00:02x}")
        elif char.isprintable():
            out.append(char)
        elif code < 0x80:
            out.append(f"\\x{code:02x}")
        elif code < 0x10000:
            out.append(f"\\u{code:04x}")
        else:
            out.append(f"\\U{code:08x}")
    out.append('"')
    return "".join(out)
